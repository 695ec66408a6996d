"""Envelopes: how items share one message between nodes, and how they are read again.

An envelope is msgpack: who says it, in which lane, its number there, when, and the items, or where they are stored.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from walstream.bus.items import Item
from walstream.errors import BusError

Lane = Literal[0, 1]
ORDERED: Final = 0
"""The sender's own transactions: numbers rise by one, so that a hole tells of something lost."""
ALONGSIDE: Final = 1
"""Transactions of others that carry items along: numbers are unique, come in any order, and may never come."""

HEAD_BYTES: Final = 48
"""Bytes of an envelope beside its node's name, its items and its reference: four numbers and the heads of arrays."""

PIECE_HEAD_BYTES: Final = 12
PARTS_MAX: Final = 300
"""Pieces of one item, together about 1.7 MB."""

NODE_CHARACTERS_MAX: Final = 300
ITEMS_MAX: Final = 2000
"""Items of one envelope: what is done at one go when it is read."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What one node says at once.

    ``node`` is another one at every start of the process. ``at``: milliseconds since the Unix epoch. ``stored``: the
    uuid of the stored row that has the items, or "". ``parts``: pieces of an item too large for one envelope, which
    stand in as many, numbered in a row; ``part`` counts from 0 and ``data`` is this piece. 0 where there are items.
    """

    node: str
    lane: Lane
    number: int
    at: int
    items: list[Item]
    stored: str = ""
    parts: int = 0
    part: int = 0
    data: bytes = b""


class _Sent(msgspec.Struct, frozen=True, array_like=True):
    """An envelope whose items are encoded already."""

    node: str
    lane: Lane
    number: int
    at: int
    items: list[msgspec.Raw]
    stored: str = ""
    parts: int = 0
    part: int = 0
    data: bytes = b""


class Parcel(NamedTuple):
    """One message to send. ``content``: what is stored under the uuid ``stored``, b"" where nothing is."""

    envelope: bytes
    items: int
    stored: str = ""
    content: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_contents = msgspec.msgpack.Decoder(list[Item])
_sent = msgspec.msgpack.Decoder(_Sent)
_raw_contents = msgspec.msgpack.Decoder(list[msgspec.Raw])
_item = msgspec.msgpack.Decoder(Item)


def encode_item(item: Item) -> bytes | None:
    """The item's bytes; None for one that cannot be encoded, such as one with half a surrogate pair in a name."""
    try:
        return _encoder.encode(item)
    except (ValueError, TypeError, OverflowError):
        return None


def decode_envelope(data: bytes) -> Envelope:
    """Raises BusError for whatever is no envelope. Items that only another release knows are left out."""
    try:
        try:
            envelope = _envelopes.decode(data)
        except msgspec.ValidationError:
            sent = _sent.decode(data)
            known = _known(sent.items)
            head = (sent.node, sent.lane, sent.number, sent.at)
            envelope = Envelope(*head, known, sent.stored, sent.parts, sent.part, sent.data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BusError(f"no envelope: {error}", "malformed") from error
    if len(envelope.node) > NODE_CHARACTERS_MAX or not envelope.node or envelope.number < 0:
        raise BusError("no envelope: its sender has no name that is one", "malformed")
    return envelope


def decode_content(data: bytes) -> list[Item]:
    """The items of a stored row, as in ``decode_envelope``. Raises BusError."""
    try:
        try:
            return _contents.decode(data)
        except msgspec.ValidationError:
            return _known(_raw_contents.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BusError(f"no items: {error}", "malformed") from error


def _known(items: list[msgspec.Raw]) -> list[Item]:
    """Nodes of two releases may run side by side for a while."""
    known: list[Item] = []
    for raw in items:
        with contextlib.suppress(msgspec.ValidationError):
            known.append(_item.decode(raw))
    return known


class Pieces:
    """Puts cut items together again. The pieces of one come in a row, for they are of one transaction."""

    def __init__(self) -> None:
        self._first: tuple[str, int] = ("", 0)  # node and number of the first piece
        self._data: list[bytes] = []

    def add(self, envelope: Envelope) -> list[Item]:
        """The item, once the last piece is there. Pieces of one that did not come whole say nothing.

        Raises BusError for what is no piece.
        """
        part, parts = envelope.part, envelope.parts
        if not 0 <= part < parts <= PARTS_MAX:
            raise BusError("a piece of nothing", "malformed")
        first = (envelope.node, envelope.number - part)
        if part == 0:
            self._first, self._data = first, []
        elif first != self._first or len(self._data) != part:
            self._data = []
            return []
        self._data.append(envelope.data)
        if part + 1 < parts:
            return []
        whole, self._data = b"".join(self._data), []
        try:
            return [_item.decode(whole)]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BusError(f"no item: {error}", "malformed") from error


class Packer:
    """The outgoing side of one node: items wait here, bounded, until they are packed into parcels.

    ``bytes_max``: of waiting items. ``room``: bytes that one envelope may have; an item that does not fit goes to a
    stored row, whose uuid ``new_id`` makes.
    """

    def __init__(self, node: str, *, room: int, bytes_max: int, new_id: Callable[[], str]) -> None:
        self._node = node
        self._space = room - HEAD_BYTES - len(node.encode())
        self._bytes_max = bytes_max
        self._new_id = new_id
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._number = 0
        self._alongside = 0
        self._has_hole = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, encoded: bytes) -> bool:
        """Let an encoded item wait; False where there is no room, and it is lost."""
        if self._size + len(encoded) > self._bytes_max:
            self.lost()
            return False
        self._waiting.append(encoded)
        self._size += len(encoded)
        return True

    def lost(self) -> None:
        """Something was not sent: a number is left out, which tells others so."""
        self._has_hole = True

    def drop(self) -> int:
        """Forget everything that waits, and how many items that was."""
        count = len(self._waiting)
        if count:
            self._waiting.clear()
            self._size = 0
            self.lost()
        return count

    def take(self, at: int, *, bytes_max: int) -> list[Parcel]:
        """The oldest items as parcels, in order: about ``bytes_max`` of them, one at least. ``at``: as in Envelope."""
        parcels: list[Parcel] = []
        taken = 0
        while self._waiting and taken < bytes_max:
            group, size = self._group()
            taken += size
            parcels.append(self._parcel(ORDERED, self._next_number(), at, group, size))
        return parcels

    def alongside(self, items: list[bytes], at: int) -> list[Parcel]:
        """Parcels for somebody else's transaction, in order: it stores nothing of ours, so large items are cut.

        One that needs more than PARTS_MAX pieces is left out.
        """
        parcels = []
        group: list[bytes] = []
        size = 0
        for encoded in items:
            is_large = len(encoded) > self._space
            if group and (is_large or size + len(encoded) > self._space or len(group) == ITEMS_MAX):
                parcels.append(self._aside(group, at))
                group, size = [], 0
            if is_large:
                parcels += self._pieces(encoded, at)
            else:
                group.append(encoded)
                size += len(encoded)
        if group:
            parcels.append(self._aside(group, at))
        return parcels

    def _aside(self, group: list[bytes], at: int) -> Parcel:
        self._alongside += 1
        return self._parcel(ALONGSIDE, self._alongside, at, group, 0)

    def _pieces(self, encoded: bytes, at: int) -> list[Parcel]:
        size = self._space - PIECE_HEAD_BYTES
        pieces = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        if len(pieces) > PARTS_MAX:
            return []
        parcels = []
        for part, data in enumerate(pieces):
            self._alongside += 1
            sent = _Sent(self._node, ALONGSIDE, self._alongside, at, [], "", len(pieces), part, data)
            parcels.append(Parcel(_encoder.encode(sent), int(part == 0)))
        return parcels

    def _group(self) -> tuple[list[bytes], int]:
        """What fits into one envelope, or one item that does not."""
        waiting = self._waiting
        group = [waiting.popleft()]
        size = len(group[0])
        while waiting and size + len(waiting[0]) <= self._space and len(group) < ITEMS_MAX:
            size += len(waiting[0])
            group.append(waiting.popleft())
        self._size -= size
        return group, size

    def _next_number(self) -> int:
        self._number += 2 if self._has_hole else 1
        self._has_hole = False
        return self._number

    def _parcel(self, lane: Lane, number: int, at: int, group: list[bytes], size: int) -> Parcel:
        items = [msgspec.Raw(encoded) for encoded in group]
        if size <= self._space:
            return Parcel(_encoder.encode(_Sent(self._node, lane, number, at, items)), len(items))
        stored = self._new_id()
        return Parcel(
            _encoder.encode(_Sent(self._node, lane, number, at, [], stored)), len(items), stored, _encoder.encode(items)
        )
