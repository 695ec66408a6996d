"""One client's broadcasts to 500 members of its room on the same node: deliveries per CPU-second, and their delay.

The delay is measured in rounds of its own, at members spread over the order of joining and read by a process of its
own, so that whoever drains the others does not add to what it measures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import selectors
import socket
import time
from multiprocessing.connection import Connection

from benchmarks import peers, rig

MEMBERS = 500
SAMPLED = 10
RATE = 250
DELAY_RATE = 200
SECONDS = 8
TOPIC = "realtime:bench"
_SPAWN = multiprocessing.get_context("spawn")
_MARK = b'"broadcast",{'
_SENT = re.compile(rb'"sent": ([0-9.]+)')


def main(rounds: int = 3) -> None:
    """Measure and print."""
    rates, delays, size = [], [], 0
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        daemon = rig.Daemon(dsn, rig.free_port(), max_messages_per_second="0")
        try:
            for _ in range(rounds):
                rate, size = _rate(daemon)
                rates.append(rate)
                delays.append(_delay(daemon))
        finally:
            daemon.stop()
    others = {name: peers.measure(name, MEMBERS, RATE, SECONDS, size) for name in peers.SERVERS}
    rows = [
        ("frame", f"{size} bytes"),
        (f"walstream, {RATE} messages/s (mark: 150,000)", f"{rig.median(rates):,.0f} deliveries per CPU-second"),
        (
            f"delay at {DELAY_RATE} messages/s, p50 (mark: 2 ms)",
            f"{rig.median([each[0] for each in delays]) * 1e3:.2f} ms",
        ),
        ("delay, p99", f"{rig.median([each[1] for each in delays]) * 1e3:.2f} ms"),
    ]
    rows += [(f"{name}, from the server itself", f"{rate:,.0f} frames per CPU-second") for name, rate in others.items()]
    rig.report(f"broadcast to {MEMBERS} members, {rounds} rounds (median)", rows)


def enter(port: int, topic: str = TOPIC, presence: bool = False) -> socket.socket:
    """A socket that has joined a room without table changes."""
    raw = rig.connect(port)
    config = {"broadcast": {}, "presence": {"enabled": presence}, "postgres_changes": [], "private": False}
    raw.sendall(rig.masked(json.dumps(["1", "1", topic, "phx_join", {"config": config}])))
    seen = b""
    while b'"phx_reply"' not in seen:
        more = raw.recv(65536)
        if not more:
            raise RuntimeError(f"join failed: {seen!r}")
        seen += more
    if b'"status":"ok"' not in seen:
        raise RuntimeError(f"join failed: {seen!r}")
    return raw


def _rate(daemon: rig.Daemon) -> tuple[float, int]:
    """Deliveries per CPU-second, and bytes of a frame."""
    sockets = [enter(daemon.port) for _ in range(MEMBERS)]
    sender = _SPAWN.Process(target=_send, args=(daemon.port, RATE))
    before = daemon.cpu_seconds()
    sender.start()
    total = rig.read_all(sockets, RATE * SECONDS, _MARK)
    used = daemon.cpu_seconds() - before
    sender.join()
    for raw in sockets:
        raw.close()
    count = MEMBERS * RATE * SECONDS
    return count / used, total // count


def _delay(daemon: rig.Daemon) -> tuple[float, float]:
    """p50 and p99, in seconds."""
    ours, theirs = _SPAWN.Pipe()
    sockets = [enter(daemon.port) for _ in range(MEMBERS // 2)]
    sampler = _SPAWN.Process(target=_sample, args=(daemon.port, theirs))
    sampler.start()
    ours.recv()
    sockets += [enter(daemon.port) for _ in range(MEMBERS - SAMPLED - len(sockets))]
    drain = _SPAWN.Process(target=_drain, args=(sockets,))
    sender = _SPAWN.Process(target=_send, args=(daemon.port, DELAY_RATE))
    drain.start()
    sender.start()
    measured: list[float] = ours.recv()
    for process in (sender, sampler, drain):
        process.join()
    for raw in sockets:
        raw.close()
    return rig.percentile(measured, 0.5), rig.percentile(measured, 0.99)


def _drain(sockets: list[socket.socket]) -> None:
    os.nice(5)  # so that those who measure come first
    rig.read_all(sockets, DELAY_RATE * SECONDS, _MARK)


def _send(port: int, rate: int) -> None:
    raw = enter(port)
    due = time.monotonic()
    for _ in range(rate * SECONDS):
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        payload = {"type": "broadcast", "event": "move", "payload": {"sent": time.monotonic(), "text": "x" * 150}}
        raw.sendall(rig.masked(json.dumps(["1", None, TOPIC, "broadcast", payload])))
    raw.close()


def _sample(port: int, pipe: Connection) -> None:
    """Join in the middle of the others; note when each message arrives at each of a few members."""
    selector = selectors.DefaultSelector()
    sockets = [enter(port) for _ in range(SAMPLED)]
    for raw in sockets:
        selector.register(raw, selectors.EVENT_READ, raw)
    pipe.send("ready")
    delays: list[float] = []
    while len(delays) < SAMPLED * DELAY_RATE * SECONDS:
        for key, _ in selector.select():
            data = key.data.recv(1 << 16)
            now = time.monotonic()
            delays += [now - float(sent) for sent in _SENT.findall(data)]
    pipe.send(delays)
    for raw in sockets:
        raw.close()


if __name__ == "__main__":
    main()
