"""1,000 clients of the same changes, one of which stops reading: how late the others' changes are meanwhile.

Beside it, in the same run and by turns, the same clients while all read. The one that stops goes through everything
that may become of it: the kernel's buffers are full, its outbox fills, it is to be served from the history as soon as
it reads, and it is closed when the history has let go of what it was to have.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import selectors
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

from benchmarks import latency, rig

CLIENTS = 1000
SAMPLED = 20
SECONDS = 10
ROUNDS = 8
SETTINGS = {
    "decoder": "wal2json",
    "outbox_bytes": "64KiB",  # full after two seconds
    "max_record_bytes": "16KiB",
    "max_message_bytes": "16KiB",
    "history_seconds": "5s",
    "idle_seconds": "1h",  # nobody answers pings
    "ping_seconds": "50min",
}
SEGMENT = 1400
"""Bytes of a segment, as over a network. To a client on the same machine the kernel holds megabytes back."""
SWEEP_SECONDS = 0.5
ITEMS: Final[list[dict[str, object]]] = [{"event": "INSERT", "schema": "public", "table": "bench"}]
_ID = re.compile(rb'"record":\{"id":(\d+)')
_INSERT = "insert into public.bench (room, title, amount, done) values (7, 'x', 1, true)"
_SPAWN = multiprocessing.get_context("spawn")


def main() -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        daemon = rig.Daemon(dsn, rig.free_port(), **SETTINGS)
        try:
            crowd, sampler = _connect_all(daemon.port)
            found: dict[bool, list[list[float]]] = {False: [], True: []}
            for number in range(ROUNDS):
                for is_stalled in (False, True) if number % 2 else (True, False):
                    found[is_stalled].append(_measure(dsn, daemon.port, sampler, is_stalled=is_stalled))
            closed = rig.metric(daemon.port, "walstream_slow_closes_total")
            behind = os.pread(daemon.log.fileno(), 1 << 26, 0).count(b'"client.behind"')
            for pipe in (crowd, sampler):
                pipe.send(0)
        finally:
            daemon.stop()
    rows = [("stalled clients that fell behind, were closed", f"{behind}, {closed:.0f} of {ROUNDS}")]
    _report(found[False], found[True], rows)


def _report(calm: Sequence[Sequence[float]], stalled: Sequence[Sequence[float]], rows: list[tuple[str, str]]) -> None:
    for share in (0.5, 0.99):
        without, beside = (rig.percentile([each for one in many for each in one], share) for many in (calm, stalled))
        mark = " (mark: below 1.1)" if share == 0.99 else ""
        text = f"{beside * 1e3:.2f} ms, all reading {without * 1e3:.2f} ms, ratio {beside / without:.3f}{mark}"
        rows.append((f"the others, p{share * 100:.0f}", text))
    ratios = [
        rig.percentile(beside, 0.99) / rig.percentile(without, 0.99)
        for without, beside in zip(calm, stalled, strict=True)
    ]
    rows.append(("ratios of p99 by round", " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))))
    rig.report(f"one of {CLIENTS:,} clients stops reading, {latency.RATE} changes/s, {ROUNDS} times {SECONDS} s", rows)


def _connect_all(port: int) -> tuple[Connection, Connection]:
    """Everybody but the one that stalls: the crowd, and spread among it those who are measured. Returns both pipes."""
    pipes = []
    for target in (_crowd, _sample):
        ours, theirs = _SPAWN.Pipe()
        _SPAWN.Process(target=target, args=(port, theirs), daemon=True).start()
        pipes.append(ours)
    crowd, sampler = pipes
    for _ in range(SAMPLED):
        for pipe, count in ((crowd, CLIENTS // SAMPLED - 1), (sampler, 1)):
            pipe.send(count)
            pipe.recv()
    for pipe in pipes:
        pipe.send(0)
    return crowd, sampler


def _enter(port: int, pipe: Connection) -> list[socket.socket]:
    """Connect as many as one is told, until that is none."""
    sockets: list[socket.socket] = []
    while count := pipe.recv():
        for _ in range(count):
            raw = rig.connect(port)
            rig.join(raw, "bench", ITEMS)
            sockets.append(raw)
        pipe.send("ready")
    return sockets


def _crowd(port: int, pipe: Connection) -> None:
    """Read what has come twice a second, long before the kernel's buffers are full, a few sockets at a time.

    So it takes little time itself, and never much at once.
    """
    os.nice(5)  # so that those who measure come first
    sockets = _enter(port, pipe)
    for raw in sockets:
        raw.setblocking(False)
    part = 0
    while not pipe.poll(SWEEP_SECONDS / SAMPLED):
        part = (part + 1) % SAMPLED
        for raw in sockets[part::SAMPLED]:
            with contextlib.suppress(BlockingIOError):
                raw.recv(1 << 18)


def _sample(port: int, pipe: Connection) -> None:
    """Told how many changes are to come, note when each arrives at each socket."""
    selector = selectors.DefaultSelector()
    for raw in _enter(port, pipe):
        selector.register(raw, selectors.EVENT_READ, raw)
    while count := pipe.recv():
        for key, _ in selector.select(0):
            key.data.recv(1 << 20)  # what came before
        pipe.send("ready")
        arrived: list[tuple[int, float]] = []
        while len(arrived) < SAMPLED * count:
            for key, _ in selector.select():
                data = key.data.recv(1 << 20)
                now = time.monotonic()
                arrived += [(int(row), now) for row in _ID.findall(data)]
        pipe.send(arrived)


def _measure(dsn: str, port: int, sampler: Connection, *, is_stalled: bool) -> list[float]:
    """Delays of the changes of some seconds at all who are sampled."""
    stalled = _stall(dsn, port) if is_stalled else None
    time.sleep(2 * SWEEP_SECONDS)
    count = latency.RATE * SECONDS
    sampler.send(count)
    sampler.recv()
    committed = latency.write(dsn, count)
    arrived = sampler.recv()
    if stalled is not None:
        stalled.close()
    return [at - committed[row] for row, at in arrived]


def _stall(dsn: str, port: int) -> socket.socket:
    """One more client, for whom the kernel takes nothing any more: it has never read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    raw.connect(("127.0.0.1", port))
    rig.join(rig.shake_hands(raw), "bench", ITEMS)
    for _ in range(200):
        rig.execute(dsn, *[_INSERT] * 10)
        time.sleep(0.1)
        if rig.metric(port, "walstream_outbox_bytes"):
            return raw
    raise RuntimeError("the kernel holds more back than was expected")


if __name__ == "__main__":
    main()
