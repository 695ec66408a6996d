"""Commit to client at 50 changes/s on an idle machine, beside a bare psycopg2 reader of the same WAL."""

from __future__ import annotations

import multiprocessing
import re
import select
import time
from multiprocessing.connection import Connection

import psycopg2
import psycopg2.extras

from benchmarks import rig

RATE = 50
SECONDS = 20
_ID = re.compile(rb'"record":\{"id":(\d+)')
_PEER_ID = re.compile(rb'"name":"id","typeoid":20,"value":(\d+)')


def main() -> None:
    """Measure and print."""
    spawn = multiprocessing.get_context("spawn")
    count = RATE * SECONDS
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        rig.execute(dsn, "select pg_create_logical_replication_slot('bare', 'wal2json')")
        daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json")
        try:
            pipes, processes = [], []
            for target, argument in ((subscriber, daemon.port), (bare_reader, dsn)):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=target, args=(argument, count, theirs))
                process.start()
                ours.recv()
                pipes.append(ours)
                processes.append(process)
            committed = write(dsn, count)
            arrivals = [pipe.recv() for pipe in pipes]
            for process in processes:
                process.join()
            total = rig.metric(daemon.port, "walstream_delivery_seconds_sum")
            metric_mean = total / rig.metric(daemon.port, "walstream_delivery_seconds_count")
        finally:
            daemon.stop()
    delays = [[arrived[row] - at for row, at in committed.items()] for arrived in arrivals]
    rows = []
    for share, mark in ((0.5, 2), (0.99, 5)):
        here, bare = (rig.percentile(values, share) for values in delays)
        rows.append(
            (
                f"p{share * 100:.0f}",
                f"{here * 1e3:.2f} ms, bare reader {bare * 1e3:.2f} ms, ratio {here / bare:.2f} (mark: {mark})",
            )
        )
    own, mine = metric_mean, sum(delays[0]) / count
    rows.append(
        ("mean", f"{mine * 1e3:.2f} ms; walstream_delivery_seconds says {own * 1e3:.2f} ms (mark: 5 ms between them)")
    )
    rig.report(f"commit to client, {RATE} changes/s for {SECONDS} s", rows)


def write(dsn: str, count: int) -> dict[int, float]:
    """Insert at ``RATE`` a second. Returns when each row's statement was sent, by id."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    cursor = connection.cursor()
    committed = {}
    due = time.monotonic()
    for _ in range(count):
        due += 1 / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        sent = time.monotonic()
        cursor.execute("insert into public.bench (room, title, amount, done) values (7, 'x', 1, true) returning id")
        (row,) = cursor.fetchall()
        committed[row[0]] = sent
    connection.close()
    return committed


def subscriber(port: int, count: int, pipe: Connection) -> None:
    """A WebSocket client that notes when each row arrives."""
    raw = rig.connect(port)
    rig.join(raw, "latency", [{"event": "INSERT", "schema": "public", "table": "bench"}])
    pipe.send("ready")
    arrived: dict[int, float] = {}
    while len(arrived) < count:
        data = raw.recv(1 << 16)
        at = time.monotonic()
        for match in _ID.finditer(data):
            arrived[int(match[1])] = at
    pipe.send(arrived)


def bare_reader(dsn: str, count: int, pipe: Connection) -> None:
    """The shortest psycopg2 loop that sees the same rows."""
    connection = psycopg2.connect(dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection)
    cursor = connection.cursor()
    cursor.start_replication(
        "bare", decode=False, options={"format-version": "2", "include-type-oids": "1", "include-types": "0"}
    )
    pipe.send("ready")
    arrived: dict[int, float] = {}
    while len(arrived) < count:
        message = cursor.read_message()
        if message is None:
            select.select([connection], [], [], 1)
            continue
        match = _PEER_ID.search(message.payload)
        if match:
            arrived[int(match[1])] = time.monotonic()
    connection.close()
    pipe.send(arrived)


if __name__ == "__main__":
    main()
