"""What a run leaves behind: what was committed, what each subscriber got, what the slot had confirmed.

Only nouns; who fills them is in ``tap``, ``subscribers`` and ``sampler``, what they prove is in ``oracles``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.Encoder(order="deterministic").encode


def digest(table: str, operation: str, row: Mapping[str, Any] | None, key: Any = None) -> int:
    """What two observers of one change have to agree upon. A DELETE is known by its ``key``, others by the new row."""
    return zlib.crc32(_encode((table, operation, key if operation == "DELETE" else row)))


def share(table: str, operation: str, key: Any, number: Any) -> int:
    """What one row adds to the checksum that its transaction's audit row holds. ``number``: 0 for DELETE."""
    return zlib.crc32(f"{table}:{operation}:{key}:{number}".encode())


class Event(NamedTuple):
    """One committed row change, as the tap saw it."""

    table: str
    digest: int


class Committed(NamedTuple):
    """One committed transaction. ``end``: where its commit ends. ``at``: its commit timestamp, seconds since 1970."""

    end: int
    xid: int
    at: float
    events: Sequence[Event]


class Tally(NamedTuple):
    """How many changes of a transaction came, and a checksum of what they were and in which order.

    ``is_over``: the newest one was marked as the last, and none before it.
    """

    rows: int = 0
    checksum: int = 0
    is_over: bool = False

    def and_then(self, digest: int, *, is_last: bool) -> Tally:
        """With one change more."""
        return Tally(self.rows + 1, zlib.crc32(digest.to_bytes(4), self.checksum), is_last and not self.is_over)


class Audit(NamedTuple):
    """An audit row: how many rows its transaction changed beside it, and the sum of their shares."""

    writer: int
    number: int
    rows: int
    checksum: int


class Joined(NamedTuple):
    """Joined without a position, and told that it is subscribed: what it gets begins anew.

    ``bound``: every commit that ends above this position has to be delivered; None if nobody could be asked.
    """

    at: float
    bound: int | None


class Resumed(NamedTuple):
    """Joined again with its last position, and told that what comes continues what it has."""

    at: float


class Untold(NamedTuple):
    """Joined again with its last position, and told nothing of it before changes came."""

    at: float
    since: str


class Gap(NamedTuple):
    """The daemon says that changes may be missing here.

    ``bound``: every commit that ends above this position is going to be delivered; None if that was not said.
    """

    at: float
    reason: str
    bound: int | None = None


class Lost(NamedTuple):
    """The connection ended."""

    at: float
    why: str


class Got(NamedTuple):
    """A change arrived. ``share`` and ``moved``: what it adds to its transaction's checksum and to the bank's sum."""

    at: float
    end: int
    xid: int
    ordinal: int
    table: str
    digest: int
    is_last: bool
    share: int
    moved: int
    audit: Audit | None


Entry = Joined | Resumed | Untold | Gap | Lost | Got


class Log(NamedTuple):
    """What one subscriber saw, in order. ``tables``: what it asked for, None for all of them."""

    name: str
    tables: frozenset[str] | None
    entries: Sequence[Entry]

    def wants(self, table: str) -> bool:
        """Whether changes of ``table`` are for it."""
        return self.tables is None or table in self.tables


class Sample(NamedTuple):
    """``confirmed_flush_lsn`` of the daemon's slot. ``at``: when it was asked for, seconds since 1970."""

    at: float
    confirmed: int


class Timing(NamedTuple):
    """How long the server took for something while we were its guest, and how long it may."""

    what: str
    seconds: float
    bound: float


class Usage(NamedTuple):
    """What a process took at one moment. ``at``: monotonic seconds; ``resident``: bytes; ``descriptors``: open ones."""

    at: float
    pid: int
    resident: int
    descriptors: int

    def __str__(self) -> str:
        return f"({self.resident / (1 << 20):.1f} MiB resident, {self.descriptors} descriptors)"
