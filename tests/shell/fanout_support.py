"""Fan-outs over wires that keep what was written; no test lives here."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from tests.predicate.rows import TABLE, catalog
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Change, Operation, Relation, Snapshot, Transaction
from walstream.protocol.shapes import Shape
from walstream.router import Binding, Router, parse_filter
from walstream.shell.database.access import TableRight
from walstream.shell.delivery.audience import AudienceKey
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.delivery.outbox import Outbox


class Wire:
    """Takes everything that is written to it. ``writes``: how many system calls it would have cost."""

    def __init__(self) -> None:
        self.data = b""
        self.writes = 0

    def send(self, data: bytes | memoryview) -> int:
        self.data += data
        self.writes += 1
        return len(data)

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        return self.send(b"".join(buffers))

    def frames(self) -> list[bytes]:
        """The payloads of the WebSocket frames that were written."""
        return list(payloads(self.data))


class Narrow(Wire):
    """A socket that takes what its client has read."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0

    def send(self, data: bytes | memoryview) -> int:
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        return super().send(taken)

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        return self.send(b"".join(buffers))


def payloads(data: bytes) -> Iterator[bytes]:
    """Of unmasked, whole text frames."""
    while data:
        assert data[0] == 0x81
        start, size = 2, data[1]
        if size == 126:
            start, size = 4, int.from_bytes(data[2:4], "big")
        elif size == 127:
            start, size = 10, int.from_bytes(data[2:10], "big")
        assert len(data) >= start + size, "a frame was cut"
        yield data[start : start + size]
        data = data[start + size :]


class Got(NamedTuple):
    """One change as a client got it."""

    topic: str
    commit: int
    ordinal: int
    last: bool
    ids: tuple[int, ...]


def got(wire: Wire) -> list[Got]:
    found = []
    for payload in wire.frames():
        message = json.loads(payload)
        data = message["payload"]["data"]
        _, _, commit, ordinal = data["position"].split(".")
        found.append(
            Got(
                message["topic"],
                int(commit, 16),
                int(ordinal),
                data.get("last", False),
                tuple(message["payload"]["ids"]),
            )
        )
    return found


def outbox(wire: Wire) -> Outbox:
    return Outbox(cast(socket.socket, wire), 1 << 30, lambda outbox: None)


class Roles:
    """Access by role alone; roles may be added and taken away."""

    def __init__(self, *roles: str) -> None:
        self.roles = set(roles)

    def is_open(self, role: str, relation: Relation) -> bool:
        return role in self.roles

    def right(self, role: str, relation: Relation) -> TableRight:
        return TableRight(role in self.roles)


def is_clean(fanout: Fanout) -> bool:
    """Whether nothing is left of any member."""
    members = fanout._members
    return not any((members._audiences, members._of_outbox, members.by_binding, members.joining, members.waiting))


BEFORE = Snapshot(3, 3, frozenset(), 0, 0, 1.0)
"""A snapshot from before everything: what comes is live and settles it."""


def changes(*numbers: int) -> tuple[Change, ...]:
    """Inserted rows whose column n has these values."""
    return tuple(
        Change(TABLE, Operation.INSERT, (b"%d" % number, b'"a"', b"true"), None, 0, ordinal)
        for ordinal, number in enumerate(numbers)
    )


class Rig:
    """A fan-out with its ring, and transactions that come one after the other."""

    def __init__(self, *roles: str) -> None:
        self.router = Router(catalog())
        self.ring = Ring(bytes_max=1 << 30, seconds=1e9, wal_bytes=1 << 60)
        self.access = Roles(*(roles or ("reader",)))
        self.fanout = Fanout(self.router, self.ring, self.access)
        self.commit = 100

    def binding(self, text: str = "", select: tuple[str, ...] | None = None) -> int:
        return self.router.add(Binding("*", "public", "things", parse_filter(text), select), {})

    def key(self, *ids: int, topic: str = "realtime:t", role: str = "reader") -> AudienceKey:
        return AudienceKey(topic, "1.0.0", Shape.CHANGES, ids, role)

    def append(self, rows: tuple[Change, ...], xid: int = 0) -> tuple[int, Transaction]:
        self.commit += 10
        transaction = Transaction(xid or self.commit, Lsn(self.commit), 0, rows, size=1)
        return self.ring.append(transaction, 0), transaction

    def route(self, *numbers: int, spilled: bool = False) -> int:
        """Route a transaction with these rows. Returns its commit end."""
        sequence, transaction = self.append(changes(*numbers))
        self.fanout.route(sequence, transaction, spilled=spilled)
        return self.commit
