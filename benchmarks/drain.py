"""Drain 200,000 inserts (10 a transaction) from the slot to one subscriber, beside ``pg_recvlogical``.

Both read the same WAL with the same plugin options; the daemon is stopped while the backlog is written.
"""

from __future__ import annotations

import multiprocessing
import resource
import select
import socket
import subprocess
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import rig
from walstream.decoder import make
from walstream.model import Catalog
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.database.postgres import connect

ROWS = 200_000
INSERT = """
do $$ begin for i in 1..{transactions} loop
    insert into public.bench (room, title, amount, done)
    select g, 'a title of some length ' || g, g * 1.25, g % 2 = 0 from generate_series(1, 10) g;
    commit;
end loop; end $$
"""


def main(rounds: int = 3) -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        options = make("wal2json", Catalog(), wanted=lambda _schema, _name: True).options()
        daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json", max_messages_per_second="0")
        ours: list[_Used] = []
        theirs: list[_Used] = []
        bare: list[_Used] = []
        try:
            for turn in range(rounds):
                slot = f"peer_{turn}"
                for name in (slot, f"bare_{turn}"):
                    rig.execute(dsn, f"select pg_create_logical_replication_slot('{name}', 'wal2json')")
                raw = rig.connect(daemon.port)
                rig.join(raw, "drain", [{"event": "INSERT", "schema": "public", "table": "bench"}])
                daemon.pause()
                rig.execute(dsn, INSERT.format(transactions=ROWS // 10))
                theirs.append(_peer(server, dsn, slot, options))
                bare.append(_bare(dsn, f"bare_{turn}", options))
                server_before, before = _sender_seconds(dsn), daemon.cpu_seconds()
                daemon.resume()
                seconds = _subscriber(raw)
                ours.append(_Used(seconds, daemon.cpu_seconds() - before, _sender_seconds(dsn) - server_before))
                raw.close()
                for name in (slot, f"bare_{turn}"):
                    rig.execute(dsn, f"select pg_drop_replication_slot('{name}')")
                rig.execute(dsn, "truncate public.bench")
        finally:
            daemon.stop()
    rig.report(
        f"drain of {ROWS:,} inserts, 10 a transaction, wal2json, {rounds} rounds (median)",
        [
            ("pg_recvlogical", _shown(theirs)),
            ("a psycopg2 loop that drops the rows", _shown(bare)),
            ("walstream to one subscriber", _shown(ours)),
            ("the server beside it", f"{rig.median([each.server for each in ours]) / ROWS * 1e6:.2f} µs per row"),
            (
                "ratio (mark: at least 0.9)",
                f"{rig.median([one.seconds / other.seconds for one, other in zip(theirs, ours, strict=True)]):.2f}",
            ),
        ],
    )


class _Used(NamedTuple):
    """Seconds of one drain: by the clock, of the reader's processor time, and of the server's process beside it."""

    seconds: float
    reader: float
    server: float = 0.0


def _shown(drains: list[_Used]) -> str:
    rate = ROWS / rig.median([each.seconds for each in drains])
    return f"{rate:,.0f} rows/s, {rig.median([each.reader for each in drains]) / ROWS * 1e6:.2f} µs per row"


def _sender_seconds(dsn: str) -> float:
    """Processor time so far of the server's process that sends to the daemon."""
    with closing(connect(dsn, application_name="bench")) as connection, connection.cursor() as cursor:
        cursor.execute("select pid from pg_stat_replication where application_name like 'walstream%'")
        ((pid,),) = cursor.fetchall()
    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def _peer(server: Cluster, dsn: str, slot: str, options: dict[str, str]) -> _Used:
    end = subprocess.run(
        [server.binaries.bin_dir / "psql", "-Atc", "select pg_current_wal_flush_lsn()", dsn],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    command: list[str | Path] = [
        server.binaries.bin_dir / "pg_recvlogical",
        *("-d", dsn, "--slot", slot, "--start", "-f", "/dev/null", "--endpos", end, "--no-loop"),
    ]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Used(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def bare_reader(dsn: str, slot: str, options: dict[str, str], pipe: Connection) -> None:
    """The shortest psycopg2 loop that reads the rows: what is left to win on the reading side."""
    connection = connect(dsn, application_name="bare", replication=True)
    cursor: Any = connection.cursor()
    used, started = time.process_time(), time.monotonic()
    cursor.start_replication(slot, options=options, decode=False)
    seen = 0
    while seen < ROWS:
        message = cursor.read_message()
        if message is None:
            select.select([connection], [], [], 1)
        elif message.payload.startswith(b'{"action":"I"'):
            seen += 1
    pipe.send((time.monotonic() - started, time.process_time() - used))
    connection.close()


def _bare(dsn: str, slot: str, options: dict[str, str]) -> _Used:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=bare_reader, args=(dsn, slot, options, theirs))
    process.start()
    drained = _Used(*ours.recv())
    process.join()
    return drained


def _subscriber(raw: socket.socket) -> float:
    """Count the frames without looking into them: one buffer, whose end is kept because a mark may be cut in two."""
    started = time.monotonic()
    mark = b'"postgres_changes"'
    kept = len(mark) - 1
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    seen, start = 0, 0
    while seen < ROWS:
        size = raw.recv_into(view[start:])
        if not size:
            raise RuntimeError(f"closed after {seen} rows")
        end = start + size
        seen += buffer.count(mark, 0, end)
        start = min(kept, end)
        buffer[:start] = buffer[end - start : end]
    return time.monotonic() - started


if __name__ == "__main__":
    main()
