"""One client's broadcasts to 500 members of its room on the same node: deliveries per CPU-second, and their delay.

Members spread over the order of joining are read by a process of its own, so that whoever drains the others does not
add to what it measures.
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
RATE = 200
SECONDS = 8
TOPIC = "realtime:bench"
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
                rate, delay, size = _round(daemon)
                rates.append(rate)
                delays.append(delay)
        finally:
            daemon.stop()
    others = {name: peers.measure(name, MEMBERS, RATE, SECONDS, size) for name in peers.SERVERS}
    rows = [
        ("frame", f"{size} bytes"),
        ("walstream (mark: 150,000)", f"{rig.median(rates):,.0f} deliveries per CPU-second"),
        ("delay, p50 (mark: 2 ms)", f"{rig.median([each[0] for each in delays]) * 1e3:.2f} ms"),
        ("delay, p99", f"{rig.median([each[1] for each in delays]) * 1e3:.2f} ms"),
    ]
    rows += [(f"{name}, from the server itself", f"{rate:,.0f} frames per CPU-second") for name, rate in others.items()]
    rig.report(f"broadcast to {MEMBERS} members, {RATE} messages/s, {rounds} rounds (median)", rows)


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


def _round(daemon: rig.Daemon) -> tuple[float, tuple[float, float], int]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    sockets = [enter(daemon.port) for _ in range(MEMBERS // 2)]
    sampler = spawn.Process(target=_sample, args=(daemon.port, theirs))
    sampler.start()
    ours.recv()
    sockets += [enter(daemon.port) for _ in range(MEMBERS - SAMPLED - len(sockets))]
    sender = spawn.Process(target=_send, args=(daemon.port,))
    before = daemon.cpu_seconds()
    sender.start()
    os.nice(5)  # so that those who measure come first
    total = rig.read_all(sockets, RATE * SECONDS, _MARK, pause=0.05)
    used = daemon.cpu_seconds() - before
    measured: list[float] = ours.recv()
    sender.join()
    sampler.join()
    for raw in sockets:
        raw.close()
    count = MEMBERS * RATE * SECONDS
    delay = rig.percentile(measured, 0.5), rig.percentile(measured, 0.99)
    return count / used, delay, total // (len(sockets) * RATE * SECONDS)


def _send(port: int) -> None:
    raw = enter(port)
    due = time.monotonic()
    for _ in range(RATE * SECONDS):
        due += 1 / RATE
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
    while len(delays) < SAMPLED * RATE * SECONDS:
        for key, _ in selector.select():
            data = key.data.recv(1 << 16)
            now = time.monotonic()
            delays += [now - float(sent) for sent in _SENT.findall(data)]
    pipe.send(delays)
    for raw in sockets:
        raw.close()


if __name__ == "__main__":
    main()
