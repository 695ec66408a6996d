"""Resident memory of the daemon per joined idle connection, with 5,000 connections."""

from __future__ import annotations

import resource
import socket

from benchmarks import rig

CONNECTIONS = 5000


def main() -> None:
    """Measure and print."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        daemon = rig.Daemon(dsn, rig.free_port(), max_connections="6000")
        sockets: list[socket.socket] = []
        try:
            _open(daemon, sockets, 100)  # what is loaded once is not counted
            before = daemon.resident_bytes()
            _open(daemon, sockets, CONNECTIONS)
            after = daemon.resident_bytes()
        finally:
            for raw in sockets:
                raw.close()
            daemon.stop()
    rig.report(
        f"{CONNECTIONS:,} joined idle connections",
        [
            ("resident before", f"{before / 1e6:.1f} MB"),
            ("resident after", f"{after / 1e6:.1f} MB"),
            ("per connection (mark: at most 25 KB)", f"{(after - before) / CONNECTIONS / 1024:.1f} KB"),
        ],
    )


def _open(daemon: rig.Daemon, sockets: list[socket.socket], count: int) -> None:
    path = f"/realtime/v1/websocket?apikey={rig.token()}&vsn=2.0.0"
    for _ in range(count):
        raw = rig.connect(daemon.port, path)
        rig.join(raw, "idle", [{"event": "*", "schema": "public", "table": "bench"}])
        sockets.append(raw)


if __name__ == "__main__":
    main()
