"""Drain 200,000 inserts (10 a transaction) from the slot to one subscriber, beside ``pg_recvlogical``.

Both read the same WAL with the same plugin options; the daemon is stopped while the backlog is written.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
        ours, theirs, bare, used = [], [], [], []
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
                before = daemon.cpu_seconds()
                daemon.resume()
                ours.append(_subscriber(raw))
                used.append(daemon.cpu_seconds() - before)
                raw.close()
                for name in (slot, f"bare_{turn}"):
                    rig.execute(dsn, f"select pg_drop_replication_slot('{name}')")
                rig.execute(dsn, "truncate public.bench")
        finally:
            daemon.stop()
    rig.report(
        f"drain of {ROWS:,} inserts, 10 a transaction, wal2json, {rounds} rounds (median)",
        [
            ("pg_recvlogical", f"{ROWS / rig.median(theirs):,.0f} rows/s"),
            ("a psycopg2 loop that drops the rows", f"{ROWS / rig.median(bare):,.0f} rows/s"),
            ("walstream to one subscriber", f"{ROWS / rig.median(ours):,.0f} rows/s"),
            ("processor time of the daemon", f"{rig.median(used) / ROWS * 1e6:.2f} µs per row"),
            ("ratio (mark: at least 0.9)", f"{rig.median(theirs) / rig.median(ours):.2f}"),
        ],
    )


def _peer(server: Cluster, dsn: str, slot: str, options: dict[str, str]) -> float:
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
    started = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def bare_reader(dsn: str, slot: str, options: dict[str, str], pipe: Connection) -> None:
    """The shortest psycopg2 loop that reads the rows: what is left to win on the reading side."""
    connection = connect(dsn, application_name="bare", replication=True)
    cursor: Any = connection.cursor()
    started = time.monotonic()
    cursor.start_replication(slot, options=options, decode=False)
    seen = 0
    while seen < ROWS:
        message = cursor.read_message()
        if message is None:
            select.select([connection], [], [], 1)
        elif message.payload.startswith(b'{"action":"I"'):
            seen += 1
    pipe.send(time.monotonic() - started)
    connection.close()


def _bare(dsn: str, slot: str, options: dict[str, str]) -> float:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=bare_reader, args=(dsn, slot, options, theirs))
    process.start()
    seconds: float = ours.recv()
    process.join()
    return seconds


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
