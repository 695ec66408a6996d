"""5,000 sockets join one room and track a presence each: when all know all, and how many diffs that took.

The clients count refs instead of parsing: everyone is told of everyone exactly once, in the state or in a diff.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import selectors
import socket
import time

from benchmarks import rig

CLIENTS = 5000
TOPIC = "realtime:crowd"
PATIENCE_SECONDS = 120.0

REF = b'":{"metas":[{"phx_ref":"'  # once for each of them, since no key is shared; long patterns are found faster
DIFF = b'"presence_diff"'
REPLY = b'"phx_reply"'
TAIL = max(map(len, (REF, DIFF, REPLY))) - 1
READ_BYTES = 1 << 18


class Member:
    """One socket of the crowd. ``known``: how many people it has been told of, in ``diffs`` diffs and a state."""

    __slots__ = ("diffs", "known", "name", "raw", "tail", "tracks")

    def __init__(self, raw: socket.socket, name: str) -> None:
        self.raw = raw
        self.name = name
        self.known = self.diffs = 0
        self.tracks = False
        self.tail = b""

    def join(self) -> None:
        """Ask to join; ``take`` goes on when the reply comes."""
        config = {"broadcast": {}, "presence": {"enabled": True, "key": self.name}, "private": False}
        self.raw.sendall(rig.masked(json.dumps(["1", "1", TOPIC, "phx_join", {"config": config}])))

    def take(self, buffer: bytearray) -> bool:
        """Read and count. False once the server has closed.

        Patterns may be cut by the end of a read. Those that begin within the last bytes are counted with what comes
        next, which is put behind them; ``known_now`` looks at both.
        """
        tail = self.tail
        buffer[: len(tail)] = tail
        end = len(tail) + self.raw.recv_into(memoryview(buffer)[len(tail) :])
        if end == len(tail):
            return False
        if not self.tracks and buffer.find(REPLY, 0, end) >= 0:
            self.tracks = True
            told = {"type": "presence", "event": "track", "payload": {"name": self.name, "at": 17}}
            self.raw.sendall(rig.masked(json.dumps(["1", "2", TOPIC, "presence", told])))
        keep = max(0, end - TAIL)
        self.known += buffer.count(REF, 0, min(end, keep + len(REF) - 1))
        self.diffs += buffer.count(DIFF, 0, min(end, keep + len(DIFF) - 1))
        self.tail = bytes(buffer[keep:end])
        return True

    def known_now(self) -> int:
        """How many it has been told of."""
        return self.known + self.tail.count(REF)


def main(rounds: int = 3) -> None:
    """Measure and print."""
    _allow_files()
    seconds, cpu, diffs, most = [], [], 0, 0
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        for _ in range(rounds):
            took, used, diffs, most = _round(dsn)
            seconds.append(took)
            cpu.append(used)
    rig.report(
        f"{CLIENTS:,} presence joins into one room, {rounds} rounds (median)",
        [
            ("until all know all (mark: 5 s)", f"{rig.median(seconds):.2f} s"),
            ("the fastest and the slowest round", f"{min(seconds):.2f} and {max(seconds):.2f} s"),
            ("processor time of the daemon", f"{rig.median(cpu):.2f} s"),
            ("diffs that a member got, last round", f"{diffs / CLIENTS:.1f} on average, {most} at most"),
            ("diffs without merging", f"{CLIENTS / 2:,.0f} on average"),
        ],
    )


def _round(dsn: str) -> tuple[float, float, int, int]:
    """Seconds, processor seconds, diffs of all members, most diffs of one."""
    daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json")
    members: list[Member] = []
    try:
        members.extend(Member(rig.connect(daemon.port), f"u{number:05}") for number in range(CLIENTS))
        before = daemon.cpu_seconds()
        started = time.monotonic()
        _run(members)
        took = time.monotonic() - started
        used = daemon.cpu_seconds() - before
        return took, used, sum(member.diffs for member in members), max(member.diffs for member in members)
    finally:
        for member in members:
            member.raw.close()
        daemon.stop()


def _run(members: list[Member]) -> None:
    """All join at once; returns when everyone knows everyone."""
    with contextlib.closing(selectors.DefaultSelector()) as selector:
        for member in members:
            selector.register(member.raw, selectors.EVENT_READ, member)
        left = len(members)
        deadline = time.monotonic() + PATIENCE_SECONDS
        waiting = iter(members)
        buffer = bytearray(READ_BYTES)
        while left:
            # Some joins, then whatever there is to read: nobody's buffer shall be the bottleneck.
            some = list(itertools.islice(waiting, 50))
            for joining in some:
                joining.join()
            for key, _ in selector.select(0 if some else 1):
                taken: Member = key.data
                if not taken.take(buffer):
                    raise RuntimeError("a socket was closed by the server")
                if taken.known_now() == len(members):
                    selector.unregister(taken.raw)
                    left -= 1
            if time.monotonic() > deadline:
                known = [member.known_now() for member in members]
                raise RuntimeError(f"{left} members have not been told of all: they know {min(known)} to {max(known)}")


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CLIENTS + 500
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))


if __name__ == "__main__":
    main()
