"""500 clients on one table: frames per CPU-second at 250 commits/s, and frames/s of a backlog of 4,000 changes.

Beside the daemon, in the same run: ``websockets.broadcast``, trio-websocket's ``send_message``, and a bare loop over
``socket.send``, which is what the system leaves to any Python program that writes to each client by itself.
"""

from __future__ import annotations

import multiprocessing
import socket
import time

import psycopg2

from benchmarks import peers, rig

CLIENTS = 500
RATE = 250
SECONDS = 8
BACKLOG = 4000
TABLE = """
create table public.bench (
    id bigint generated always as identity primary key,
    title text not null,
    at timestamptz not null default now()
);
grant select on public.bench to anon, authenticated, service_role;
"""
ROW = "insert into public.bench (title) values (%s)"
TITLE = "buy milk, bread and some butter"
"""So that a frame has about 450 bytes, as Supabase's have for a small table."""


def main(rounds: int = 3) -> None:
    """Measure and print."""
    steady, burst, size = [], [], 0
    with rig.cluster() as server:
        dsn = rig.prepare(server, TABLE)
        daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json")
        sockets: list[socket.socket] = []
        try:
            for _ in range(CLIENTS):
                raw = rig.connect(daemon.port)
                rig.join(raw, "bench", [{"event": "*", "schema": "public", "table": "bench"}])
                sockets.append(raw)
            for _ in range(rounds):
                rate, size = _steady(dsn, daemon, sockets)
                steady.append(rate)
                burst.append(_burst(dsn, daemon, sockets))
        finally:
            for raw in sockets:
                raw.close()
            daemon.stop()
    others = {name: peers.measure(name, CLIENTS, RATE, SECONDS, size) for name in peers.SERVERS}
    rows = [
        ("frame", f"{size} bytes"),
        (f"walstream, {RATE} commits/s (mark: 150,000)", f"{rig.median(steady):,.0f} frames per CPU-second"),
        (f"walstream, backlog of {BACKLOG:,} (mark: 1,000,000)", f"{rig.median(burst):,.0f} frames/s"),
    ]
    rows += [(f"{name}, {RATE} messages/s", f"{rate:,.0f} frames per CPU-second") for name, rate in others.items()]
    rig.report(f"fan-out to {CLIENTS} clients, {rounds} rounds (median)", rows)


def _steady(dsn: str, daemon: rig.Daemon, sockets: list[socket.socket]) -> tuple[float, int]:
    expected = RATE * SECONDS
    writer = multiprocessing.get_context("spawn").Process(target=write_steadily, args=(dsn, expected))
    before = daemon.cpu_seconds()
    writer.start()
    total = rig.read_all(sockets, expected)
    used = daemon.cpu_seconds() - before
    writer.join()
    return CLIENTS * expected / used, total // (CLIENTS * expected)


def write_steadily(dsn: str, count: int) -> None:
    """Single-row commits at ``RATE`` a second."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    cursor = connection.cursor()
    due = time.monotonic()
    for _ in range(count):
        due += 1 / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        cursor.execute(ROW, (TITLE,))
    connection.close()


def _burst(dsn: str, daemon: rig.Daemon, sockets: list[socket.socket]) -> float:
    daemon.pause()
    rig.execute(
        dsn, f"do $$ begin for i in 1..{BACKLOG} loop {ROW.replace('%s', repr(TITLE))}; commit; end loop; end $$"
    )
    started = time.monotonic()
    daemon.resume()
    rig.read_all(sockets, BACKLOG)
    return CLIENTS * BACKLOG / (time.monotonic() - started)


if __name__ == "__main__":
    main()
