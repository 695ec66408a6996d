"""5,000 ``eq`` bindings of which one matches, against one binding: processor time of the daemon per change."""

from __future__ import annotations

import socket
import time

from benchmarks import rig

CHANGES = 20_000
INSERT = """
do $$ begin for i in 1..{changes} loop
    insert into public.bench (room, title, amount, done) values (7, 'a title of some length', 1.25, true);
    commit;
end loop; end $$
"""


def main(rounds: int = 3) -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        one = _measure(dsn, 1, rounds)
        many = _measure(dsn, 5000, rounds)
    rig.report(
        f"one matching binding among many, {CHANGES:,} single-row commits, {rounds} rounds (median)",
        [
            ("1 binding", f"{one * 1e6:.1f} µs of processor time per change"),
            ("5,000 bindings", f"{many * 1e6:.1f} µs of processor time per change"),
            ("ratio (mark: at most 1.3)", f"{many / one:.2f}"),
        ],
    )


def _measure(dsn: str, bindings: int, rounds: int) -> float:
    daemon = rig.Daemon(
        dsn, rig.free_port(), decoder="wal2json", max_messages_per_second="0", max_joins_per_second="0"
    )  # fmt: skip
    sockets = []
    try:
        for first in range(0, bindings, 100):
            raw = rig.connect(daemon.port)
            items: list[dict[str, object]] = [
                {"event": "INSERT", "schema": "public", "table": "bench", "filter": f"room=eq.{7 + room}"}
                for room in range(first, min(first + 100, bindings))
            ]
            rig.join(raw, f"room{first}", items)
            sockets.append(raw)
        times = []
        for _ in range(rounds):
            daemon.pause()
            rig.execute(dsn, INSERT.format(changes=CHANGES))
            before = daemon.cpu_seconds()
            daemon.resume()
            _read(sockets[0])
            times.append((daemon.cpu_seconds() - before) / CHANGES)
        return rig.median(times)
    finally:
        for raw in sockets:
            raw.close()
        daemon.stop()


def _read(raw: socket.socket) -> None:
    mark, seen, tail = b'"postgres_changes"', 0, b""
    deadline = time.monotonic() + 60
    while seen < CHANGES and time.monotonic() < deadline:
        data = tail + raw.recv(1 << 20)
        seen += data.count(mark)
        tail = data[-(len(mark) - 1) :]
    if seen < CHANGES:
        raise RuntimeError(f"only {seen} of {CHANGES} changes arrived")


if __name__ == "__main__":
    main()
