"""pgoutput, protocol version 1 in text format: PostgreSQL's built-in plugin (PostgreSQL 17, 53.5 and 53.9).

The server describes each relation before its first row; everything else comes from the catalog.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final

from walstream.decoder.api import MESSAGE_PREFIX, Wanted
from walstream.decoder.nested import NULL
from walstream.decoder.pieces import PIECE_BYTES
from walstream.decoder.relations import Relations, arrange, restore, root_name
from walstream.decoder.runs import cut
from walstream.decoder.values import Converter, convert_large, from_text, type_info
from walstream.errors import DecodeError
from walstream.model import (
    Begin,
    Catalog,
    CatalogMiss,
    Change,
    Commit,
    Message,
    Operation,
    Record,
    Relation,
    ReplicaIdentity,
    Row,
)

POSTGRES_EPOCH_MICROSECONDS: Final = 946_684_800 * 1_000_000
"""2000-01-01 UTC, from which the protocol counts, in microseconds since the Unix epoch."""

_YEAR_1, _YEAR_10000 = -62_135_596_800 * 1_000_000, 253_402_300_800 * 1_000_000

_BEGIN: Final = struct.Struct("!xQqI")
_COMMIT: Final = struct.Struct("!xBQQq")
_MESSAGE: Final = struct.Struct("!xBQ")
_KIND: Final = itemgetter(0)
"""Of a message: its first byte says what it is."""

_INT16: Final = struct.Struct("!H")
_INT32: Final = struct.Struct("!I")
_COLUMN_TYPE: Final = struct.Struct("!Ii")

_NULL, _UNCHANGED, _TEXT = ord("n"), ord("u"), ord("t")


class _Told:
    """A relation as the server described it. The rest is filled in when its first row comes.

    ``columns``: name, type OID and whether the old row has it.
    """

    __slots__ = ("columns", "converters", "identity", "key", "name", "order", "relation", "schema", "wanted")

    def __init__(self, schema: str, name: str, identity: ReplicaIdentity, columns: list[tuple[str, int, bool]]) -> None:
        self.schema = schema
        self.name = name
        self.identity = identity
        self.columns = columns
        self.wanted: bool | None = None
        self.relation: Relation | None = None
        self.order: tuple[int, ...] = ()
        self.converters: list[Converter] = []
        self.key: tuple[bool, ...] = ()  # by the relation's columns


class Pgoutput:
    """The decoder. ``publication_names``: the publications whose tables are sent."""

    plugin = "pgoutput"

    def __init__(self, catalog: Catalog, *, wanted: Wanted, publication_names: tuple[str, ...] = ()) -> None:
        self._catalog = catalog
        self._wanted = wanted
        self._publications = publication_names
        self._relations = Relations(catalog)
        self._told: dict[int, _Told] = {}
        self.reset()

    def options(self) -> dict[str, str]:
        """Options for START_REPLICATION."""
        names = ",".join('"{}"'.format(name.replace('"', '""')) for name in self._publications)
        return {"proto_version": "1", "publication_names": names, "messages": "true"}

    def replan(self) -> None:
        """Forget what ``wanted`` answered; what the server told stays true."""
        for told in self._told.values():
            told.wanted = None

    def reset(self) -> None:
        """A new connection: the server describes every relation again."""
        self._told.clear()
        self._ordinal = 0

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        """See ``Decoder.decode``."""
        try:
            return self._decode(payload, data_start)
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            raise DecodeError(f"not a pgoutput message: {error}", payload) from error

    def decode_run(self, payloads: Sequence[bytes], starts: Sequence[int]) -> list[Change] | None:
        """See ``Decoder.decode_run``."""
        head = payloads[0][:6]  # I, the relation's OID, N
        told = self._told.get(int.from_bytes(head[1:5], "big"))
        if told is None or not told.wanted or told.relation is None or head[5:] != b"N":
            return None
        rows = []
        try:
            for payload in payloads:
                row, end = self._row(told, payload, 6)
                if end != len(payload) or not payload.startswith(head):
                    return None
                rows.append(row)
        except (DecodeError, struct.error, IndexError, ValueError):
            return None
        relation, ordinal = told.relation, self._ordinal
        self._ordinal = ordinal + len(rows)
        return [
            Change(relation, Operation.INSERT, row, None, start, number)
            for number, (row, start) in enumerate(zip(rows, starts, strict=True), ordinal)
        ]

    def runs(self, payloads: Sequence[bytes], first: int) -> Iterable[tuple[int, int]]:
        """See ``Decoder.runs``."""
        return cut(payloads, first, _KIND)

    def _decode(self, payload: bytes, data_start: int) -> Record | None:
        kind = payload[:1]
        if kind == b"I":
            return self._insert(payload, data_start)
        if kind == b"U":
            return self._update(payload, data_start)
        if kind == b"D":
            return self._delete(payload, data_start)
        if kind == b"B":
            return self._begin(payload)
        if kind == b"C":
            _, _, end, _ = _COMMIT.unpack(payload)
            return Commit(end)
        if kind == b"R":
            self._describe(payload)
            return None
        if kind == b"T":
            return self._truncate(payload, data_start)
        if kind == b"M":
            return _message(payload)
        if kind in (b"Y", b"O"):  # a type's name, a replication origin
            return None
        raise DecodeError(f"unknown message {kind!r}", payload)

    def _describe(self, payload: bytes) -> None:
        (oid,) = _INT32.unpack_from(payload, 1)
        schema, at = _string(payload, 5)
        name, at = _string(payload, at)
        identity = ReplicaIdentity(chr(payload[at]))
        (count,) = _INT16.unpack_from(payload, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            is_key = bool(payload[at] & 1)
            column, at = _string(payload, at + 1)
            type_oid, _ = _COLUMN_TYPE.unpack_from(payload, at)
            at += _COLUMN_TYPE.size
            columns.append((column, type_oid, is_key))
        if at != len(payload):
            raise DecodeError("text after the end of a relation", payload)
        told = _Told(schema or "pg_catalog", name, identity, columns)
        # Said again, it was altered in some way, or on a new connection it may have been: ask the catalog, too.
        self._relations.forget(told.schema, told.name)
        self._told[oid] = told

    def _begin(self, payload: bytes) -> Begin:
        lsn, commit_at, xid = _BEGIN.unpack(payload)
        commit_at += POSTGRES_EPOCH_MICROSECONDS
        if not _YEAR_1 <= commit_at < _YEAR_10000:
            raise DecodeError("a begin at no time that a clock shows", payload)
        self._ordinal = 0
        return Begin(xid, commit_at, lsn)

    def _relation(self, oid: int, payload: bytes) -> _Told | None:
        """The described relation if it is wanted, ready for rows. Raises CatalogMiss."""
        told = self._told.get(oid)
        if told is None:
            raise DecodeError(f"a row of relation {oid}, which was not described", payload)
        if told.wanted is None:
            self._prepare(told)
        return told if told.wanted else None

    def _prepare(self, told: _Told) -> None:
        info = self._relations.info(told.schema, told.name)
        if not self._wanted(*root_name(told.schema, told.name, info)):
            told.wanted = False
            return
        columns = tuple((name, oid) for name, oid, _ in told.columns)
        told.relation, told.order = self._relations.build(told.schema, told.name, columns, info, told.identity)
        told.converters = [from_text(type_info(oid, self._catalog), self._catalog) for _, oid in columns]
        told.key = tuple(told.columns[at][2] for at in told.order)
        told.wanted = True

    def _row(self, told: _Told, payload: bytes, at: int) -> tuple[Row, int]:
        """The tuple that begins at ``at``, in the relation's order, and where it ends."""
        (count,) = _INT16.unpack_from(payload, at)
        at += 2
        if count != len(told.converters):
            raise DecodeError("a row with another number of columns", payload)
        cells: list[bytes | None] = []
        for convert in told.converters:
            kind = payload[at]
            if kind == _TEXT:
                (size,) = _INT32.unpack_from(payload, at + 1)
                at += 5
                end = at + size
                if end > len(payload):
                    raise DecodeError("a row that is cut off", payload)
                if size <= PIECE_BYTES:
                    cells.append(convert(payload[at:end]))
                else:
                    cells.append(convert_large(convert, memoryview(payload)[at:end]))
                at = end
            elif kind == _NULL:
                cells.append(NULL)
                at += 1
            elif kind == _UNCHANGED:
                cells.append(None)
                at += 1
            else:
                raise DecodeError(f"unknown kind of column {kind}", payload)
        return arrange(cells, told.order), at

    def _change(self, told: _Told, operation: Operation, new: Row | None, old: Row | None, lsn: int) -> Change:
        assert told.relation is not None
        change = Change(told.relation, operation, new, old, lsn, self._ordinal)
        self._ordinal += 1
        return change

    def _insert(self, payload: bytes, data_start: int) -> Change | None:
        (oid,) = _INT32.unpack_from(payload, 1)
        told = self._relation(oid, payload)
        if told is None:
            self._ordinal += 1
            return None
        new, end = self._row(told, payload, 6)
        if payload[5:6] != b"N" or end != len(payload):
            raise DecodeError("an insert without exactly one row", payload)
        return self._change(told, Operation.INSERT, new, None, data_start)

    def _update(self, payload: bytes, data_start: int) -> Change | None:
        (oid,) = _INT32.unpack_from(payload, 1)
        told = self._relation(oid, payload)
        if told is None:
            self._ordinal += 1
            return None
        old: Row | None = None
        at = 5
        if payload[5:6] in (b"K", b"O"):
            old, at = self._row(told, payload, 6)
            if payload[5:6] == b"K":
                old = _only_key(told, old)
        if payload[at : at + 1] != b"N":
            raise DecodeError("an update without its new row", payload)
        new, end = self._row(told, payload, at + 1)
        if end != len(payload):
            raise DecodeError("text after the end of an update", payload)
        if old is None and told.identity in (ReplicaIdentity.DEFAULT, ReplicaIdentity.INDEX) and any(told.key):
            old = _only_key(told, new)  # the key did not change, so the server does not send it
        return self._change(told, Operation.UPDATE, restore(new, old), old, data_start)

    def _delete(self, payload: bytes, data_start: int) -> Change | None:
        (oid,) = _INT32.unpack_from(payload, 1)
        told = self._relation(oid, payload)
        if told is None:
            self._ordinal += 1
            return None
        if payload[5:6] not in (b"K", b"O"):
            raise DecodeError("a delete without its old row", payload)
        old, end = self._row(told, payload, 6)
        if end != len(payload):
            raise DecodeError("text after the end of a delete", payload)
        if payload[5:6] == b"K":
            old = _only_key(told, old)
        return self._change(told, Operation.DELETE, None, old, data_start)

    def _truncate(self, payload: bytes, data_start: int) -> tuple[Change, ...]:
        (count,) = _INT32.unpack_from(payload, 1)
        if len(payload) != 6 + 4 * count:
            raise DecodeError("a truncate that is cut off", payload)
        oids = struct.unpack_from(f"!{count}I", payload, 6)
        # Every relation first, so that a CatalogMiss leaves no ordinal counted, and names all that is missing.
        found: list[_Told | None] = []
        misses: list[CatalogMiss] = []
        for oid in oids:
            try:
                found.append(self._relation(oid, payload))
            except CatalogMiss as miss:
                misses.append(miss)
        if misses:
            raise CatalogMiss(
                relations=[name for miss in misses for name in miss.relations],
                types=[oid for miss in misses for oid in miss.types],
            )
        first = self._ordinal
        self._ordinal += count
        return tuple(
            Change(told.relation, Operation.TRUNCATE, None, None, data_start, ordinal)
            for ordinal, told in enumerate(found, first)
            if told is not None and told.relation is not None
        )


def _only_key(told: _Told, row: Row) -> Row:
    return tuple([cell if is_key else None for cell, is_key in zip(row, told.key, strict=True)])


def _message(payload: bytes) -> Message | None:
    flags, lsn = _MESSAGE.unpack_from(payload)
    prefix, at = _string(payload, 10)
    (size,) = _INT32.unpack_from(payload, at)
    content = payload[at + 4 :]
    if len(content) != size:
        raise DecodeError("a logical message that is cut off", payload)
    return Message(prefix, content, bool(flags & 1), lsn) if prefix == MESSAGE_PREFIX else None


def _string(payload: bytes, at: int) -> tuple[str, int]:
    end = payload.index(b"\0", at)
    return payload[at:end].decode("utf-8"), end + 1
