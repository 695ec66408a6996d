"""Drain 200,000 inserts (10 a transaction) from the slot to one subscriber, beside ``pg_recvlogical``.

Both read the same WAL with the same plugin options; the daemon is stopped while the backlog is written.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from benchmarks import rig
from walstream.decoder import make
from walstream.model import Catalog
from walstream.shell.private_cluster import Cluster

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
        ours, theirs, used = [], [], []
        try:
            for turn in range(rounds):
                slot = f"peer_{turn}"
                rig.execute(dsn, f"select pg_create_logical_replication_slot('{slot}', 'wal2json')")
                raw = rig.connect(daemon.port)
                rig.join(raw, "drain", [{"event": "INSERT", "schema": "public", "table": "bench"}])
                daemon.pause()
                rig.execute(dsn, INSERT.format(transactions=ROWS // 10))
                theirs.append(_peer(server, dsn, slot, options))
                before = daemon.cpu_seconds()
                daemon.resume()
                ours.append(_subscriber(raw))
                used.append(daemon.cpu_seconds() - before)
                raw.close()
                rig.execute(dsn, f"select pg_drop_replication_slot('{slot}')", "truncate public.bench")
        finally:
            daemon.stop()
    rig.report(
        f"drain of {ROWS:,} inserts, 10 a transaction, wal2json, {rounds} rounds (median)",
        [
            ("pg_recvlogical", f"{ROWS / rig.median(theirs):,.0f} rows/s"),
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


def _subscriber(raw: socket.socket) -> float:
    started = time.monotonic()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    mark = b'"postgres_changes"'
    seen, tail = 0, b""
    while seen < ROWS:
        size = raw.recv_into(view)
        if not size:
            raise RuntimeError(f"closed after {seen} rows")
        data = tail + bytes(view[:size])
        seen += data.count(mark)
        # Keep what may be the beginning of a mark, never a whole one.
        tail = data[-(len(mark) - 1) :]
    return time.monotonic() - started


if __name__ == "__main__":
    main()
