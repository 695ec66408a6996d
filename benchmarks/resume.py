"""5,000 clients that come back at once, each missing the same changes: how late a live client's changes are meanwhile.

Beside it, in the same run, the same live client while nobody comes back.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks import latency, rig

CLIENTS = 5000
MISSED = 100
RATE = 50
SECONDS = 15
_POSITION = re.compile(rb'"position":"([0-9a-f.]+)"')


def main() -> None:
    """Measure and print."""
    spawn = multiprocessing.get_context("spawn")
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        # Nobody reads the idle ones, nor answers their pings.
        daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json", idle_seconds="1h", ping_seconds="50min")
        try:
            since = _miss(dsn, daemon.port)
            ours, theirs = spawn.Pipe()
            storm = spawn.Process(target=_storm, args=(daemon.port, since, theirs))
            storm.start()
            ours.recv()
            calm = _live(dsn, daemon.port, lambda: None)
            cpu = daemon.cpu_seconds()
            rough = _live(dsn, daemon.port, lambda: ours.send("now"))
            seconds = ours.recv()
            cpu = daemon.cpu_seconds() - cpu
            storm.join()
        finally:
            daemon.stop()
    rows = [("until all had everything", f"{seconds:.1f} s, {CLIENTS * MISSED / seconds:,.0f} frames/s")]
    rows.append(("processor time of the daemon", f"{cpu:.1f} s"))
    for share in (0.5, 0.99):
        quiet, busy = rig.percentile(calm, share) * 1e3, rig.percentile(rough, share) * 1e3
        mark = " (mark: at most 2)" if share == 0.99 else ""
        found = f"{busy:.2f} ms, alone {quiet:.2f} ms, ratio {busy / quiet:.2f}{mark}"
        rows.append((f"live client, p{share * 100:.0f}", found))
    rig.report(f"{CLIENTS:,} clients resume at once, {MISSED} changes each", rows)


def _miss(dsn: str, port: int) -> str:
    """Let changes happen. Returns the position before them."""
    raw = rig.connect(port)
    rig.join(raw, "first", [{"event": "INSERT", "schema": "public", "table": "bench"}])
    rig.execute(dsn, "insert into public.bench (room, title, amount, done) values (1, 'first', 1, true)")
    seen = b""
    while (found := _POSITION.search(seen)) is None:
        seen += raw.recv(1 << 16)
    raw.close()
    insert = "insert into public.bench (room, title, amount, done) values (1, 'a title of some length', 1, true)"
    rig.execute(dsn, *[insert] * MISSED)
    return found[1].decode()


def _live(dsn: str, port: int, begun: Callable[[], object]) -> list[float]:
    """Delays of one live client's changes, in seconds. ``begun`` is called when the first ones are on their way."""
    spawn = multiprocessing.get_context("spawn")
    count = RATE * SECONDS
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=latency.subscriber, args=(port, count, theirs))
    process.start()
    ours.recv()
    begun()
    committed = latency.write(dsn, count)
    arrived = ours.recv()
    process.join()
    return [arrived[row] - at for row, at in committed.items()]


def _storm(port: int, since: str, pipe: Connection) -> None:
    """Connect, and when told to, join all at once and read."""
    sockets = [rig.connect(port) for _ in range(CLIENTS)]
    item = {"event": "INSERT", "schema": "public", "table": "bench", "since": since}
    config = {"broadcast": {}, "presence": {"enabled": False}, "postgres_changes": [item], "private": False}
    joins = rig.masked(json.dumps(["1", "1", "realtime:back", "phx_join", {"config": config}]))
    pipe.send("ready")
    pipe.recv()
    started = time.monotonic()
    for raw in sockets:
        raw.sendall(joins)
    rig.read_all(sockets, MISSED)
    pipe.send(time.monotonic() - started)
    _close(sockets)


def _close(sockets: list[socket.socket]) -> None:
    for raw in sockets:
        raw.close()


if __name__ == "__main__":
    main()
