"""wal2json, format version 2: one JSON object per message.

Rows take a road that never parses JSON: a message of a shape that was met before is cut by its pattern (``shapes``).
Whatever that does not recognise goes the strict road, which is the reference and learns the shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count, repeat
from operator import itemgetter
from typing import Annotated, Final

import msgspec

from walstream.decoder.api import MESSAGE_PREFIX, Wanted
from walstream.decoder.pieces import PIECE_BYTES, is_utf8, repaired
from walstream.decoder.relations import Listed, Relations, merge, root_name
from walstream.decoder.runs import cut
from walstream.decoder.shapes import NO_MATCH, OPERATIONS, Listing, Shape
from walstream.decoder.values import NEVER_TOASTED
from walstream.errors import DecodeError
from walstream.lsn import Lsn
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

SHAPES_PER_TABLE: Final = 256
"""Shapes that are remembered: an UPDATE has one for each set of columns whose values lie outside the row."""

_BEGIN: Final = re.compile(
    rb'\{"action":"B","xid":(0|[1-9][0-9]{0,8}),"timestamp":"'
    rb'([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?\+00"'
    rb',"lsn":"([0-9A-F]{1,8})/([0-9A-F]{1,8})","nextlsn":"[0-9A-F/]+"\}'
).fullmatch
_COMMIT: Final = re.compile(
    rb'\{"action":"C",.*"nextlsn":"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})"\}', re.DOTALL
).fullmatch

_ACTION: Final = itemgetter(11)
"""Of a message: the letter in ``{"action":"I"``."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_encode = msgspec.json.Encoder().encode

_Number32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]  # else it could not be asked for


class _Column(msgspec.Struct, gc=False):
    name: _Name
    typeoid: _Number32
    value: msgspec.Raw


class _Message(msgspec.Struct, gc=False):
    action: str
    xid: _Number32 | None = None
    timestamp: str | None = None
    lsn: str = ""
    nextlsn: str = ""
    schema: _Name = ""
    table: _Name = ""
    columns: list[_Column] | None = None
    identity: list[_Column] | None = None
    transactional: bool = False
    prefix: str = ""
    content: str = ""


_decode_message = msgspec.json.Decoder(_Message).decode


class _Table:
    """One relation as it is decoded now; ``relation`` is None for a table that nobody wants."""

    __slots__ = ("absent", "key", "latest", "listed", "relation", "shapes")

    def __init__(self, relation: Relation | None, listed: Listed = (), key: frozenset[str] = frozenset()) -> None:
        self.relation = relation
        self.listed = listed  # all columns, as a message lists them
        self.key = key  # names of the columns that an old row has
        self.absent: frozenset[tuple[str, int]] = (
            frozenset()
        )  # columns known to be there although an UPDATE left them out
        self.shapes: dict[Listing, Shape] = {}
        self.latest: dict[int, Shape] = {}  # by action: the shape that the next message most likely has

    def fits(self, listing: Listing) -> bool:
        """Whether a message of this shape can do without asking the catalog whether the table was altered."""
        return self.relation is None or listing in self.shapes or _agrees(listing, self.listed, self.key, self.absent)


class Wal2json:
    """The decoder. ``filter_tables``: wal2json's own list of tables to leave out."""

    plugin = "wal2json"

    def __init__(self, catalog: Catalog, *, wanted: Wanted, filter_tables: str = "") -> None:
        self._catalog = catalog
        self._wanted = wanted
        self._filter_tables = filter_tables
        self._relations = Relations(catalog)
        self.replan()
        self.reset()

    def options(self) -> dict[str, str]:
        """Options for START_REPLICATION."""
        options = {
            "format-version": "2",
            "include-transaction": "true",
            "include-lsn": "true",
            "include-xids": "true",
            "include-timestamp": "true",
            "include-types": "false",
            "include-type-oids": "true",
            "add-msg-prefixes": MESSAGE_PREFIX,
        }
        if self._filter_tables:
            options["filter-tables"] = self._filter_tables
        return options

    def replan(self) -> None:
        """Forget what ``wanted`` answered, and every table with it."""
        self._tables: dict[bytes, _Table] = {}
        # The newest row's shape, taken apart because every row asks for its parts, and where it found "schema".
        self._shape: Shape | None = None
        self._match = NO_MATCH
        self._at = 0

    def reset(self) -> None:
        """Forget the transaction that was under way."""
        self._ordinal = 0
        self._asked: set[tuple[str, str]] = set()  # tables whose facts are being asked for again

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        """See ``Decoder.decode``."""
        action = payload[11:12]
        if action == b"C":
            return _commit(payload)
        if action == b"B":
            return self._begin(payload, data_start)
        match = self._match(payload, self._at)
        if match is None:
            table = self._find(payload) if action in _ROWS else None
            if table is None:
                return self._strict(payload, data_start)
            if table.relation is None:
                self._ordinal += 1
                return None
            match = self._match(payload, self._at)
        shape = self._shape
        # Patterns look at bytes, and not at a message's head.
        if match is None or shape is None or shape.action != payload[11] or not (payload.isascii() or is_utf8(payload)):
            return self._strict(payload, data_start)
        new: Row | None
        old: Row | None = None
        if len(payload) > PIECE_BYTES:
            view = memoryview(payload)
            new, old = shape.rows_of_views(view[start:end] for start, end in match.regs[1:])
        elif not shape.is_plain:
            new, old = shape.rows(list(match.groups()))
        elif shape.converters:
            cells = list(match.groups())
            for index, convert in shape.converters:
                cells[index] = convert(cells[index])
            new = tuple(cells)
        else:
            new = match.groups()
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        return Change(shape.relation, shape.operation, new, old, data_start, ordinal)

    def decode_run(self, payloads: Sequence[bytes], starts: Sequence[int]) -> list[Change] | None:
        """See ``Decoder.decode_run``."""
        first = payloads[0]
        at = first.find(b'"schema":')
        shape = self._shape
        if shape is None or shape.action != first[11] or not first.startswith(shape.table, at):
            self._find(first)
            shape = self._shape
        match = self._match
        if shape is None or not shape.is_plain or max(map(len, payloads)) > PIECE_BYTES:
            return None
        if not (all(map(bytes.isascii, payloads)) or is_utf8(b"".join(payloads))):
            return None
        try:
            rows = [match(payload, at).groups() for payload in payloads]  # type: ignore[union-attr]  # caught
        except AttributeError:  # no match
            return None
        if shape.converters:
            try:
                rows = shape.converted(rows)
            except DecodeError:
                return None
        relation, operation, ordinal = shape.relation, shape.operation, self._ordinal
        self._ordinal = ordinal + len(rows)
        return [*map(Change, repeat(relation), repeat(operation), rows, repeat(None), starts, count(ordinal))]

    def runs(self, payloads: Sequence[bytes], first: int) -> Iterable[tuple[int, int]]:
        """See ``Decoder.runs``."""
        return cut(payloads, first, _ACTION)

    def _begin(self, payload: bytes, data_start: int) -> Record | None:
        try:
            begin = _fast_begin(payload)
        except ValueError:  # no date that there ever was
            begin = None
        if begin is None:
            return self._strict(payload, data_start)
        self._ordinal = 0
        return begin

    def _find(self, payload: bytes) -> _Table | None:
        """The table that a row message names, with its usual shape as the next to be tried; None if it is new."""
        # A bare quote cannot stand inside a JSON string, so these words are members of the message itself.
        at = payload.find(b'"schema":')
        end = payload.find(b',"identity":[' if payload[11:12] == b"D" else b',"columns":[', at)
        table = self._tables.get(payload[at:end])
        if table is not None:
            shape = table.latest.get(payload[11])
            self._shape, self._match, self._at = shape, shape.match if shape is not None else NO_MATCH, at
        return table

    # -- the strict road

    def _strict(self, payload: bytes, data_start: int) -> Record | None:
        # The server takes bytes that are no text in logical messages and from types of extensions; clients do not.
        payload = repaired(payload)
        try:
            message = _decode_message(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not a wal2json message: {error}", payload) from error
        action = message.action
        if action in OPERATIONS:
            return self._row(message, payload, data_start)
        if action == "B":
            self._ordinal = 0
            return _begin(message, payload)
        if action == "C":
            return Commit(_lsn(message.nextlsn, payload))
        if action == "T":
            return self._truncate(message, payload, data_start)
        if action == "M":
            lsn = _lsn(message.lsn, payload)
            if message.prefix != MESSAGE_PREFIX:
                return None
            return Message(message.prefix, message.content.encode(), message.transactional, lsn)
        raise DecodeError(f"unknown action {action!r}", payload)

    def _row(self, message: _Message, payload: bytes, data_start: int) -> Change | None:
        if not message.schema or not message.table:
            raise DecodeError("a row without its table", payload)
        if message.columns is None and message.action != "D":
            raise DecodeError("a row without columns", payload)
        listing = Listing(message.action, _listed(message.columns), _listed(message.identity))
        shape = self._shape_of(message.schema, message.table, listing)
        if shape is None:
            self._ordinal += 1
            return None
        values = [memoryview(column.value) for column in (*(message.columns or ()), *(message.identity or ()))]
        new, old = shape.rows_of_views(values)
        change = Change(shape.relation, shape.operation, new, old, data_start, self._ordinal)
        self._ordinal += 1
        return change

    def _shape_of(self, schema: str, name: str, listing: Listing) -> Shape | None:
        """The shape of a message; None if nobody wants its table. Raises CatalogMiss."""
        key = _table_key(schema, name)
        table = self._tables.get(key)
        if table is None or not table.fits(listing):
            table = self._tables[key] = self._prepare(schema, name, listing, table)
        if table.relation is None:
            return None
        shape = table.shapes.get(listing)
        if shape is None:
            shape = Shape(listing, key, table.relation, self._catalog)
            if len(table.shapes) < SHAPES_PER_TABLE:
                table.shapes[listing] = shape
        else:
            shape.learn()
            table.latest[shape.action] = shape
        return shape

    def _prepare(self, schema: str, name: str, listing: Listing, before: _Table | None) -> _Table:
        """The table by what the catalog and a message say. Raises CatalogMiss, once too often where they disagree."""
        info = self._relations.info(schema, name)
        if not self._wanted(*root_name(schema, name, info)):
            self._asked.discard((schema, name))
            return _Table(None)
        known = tuple((column.name, column.type_oid) for column in info.columns)
        listed = _complete(listing, known, before.listed if before is not None else ())
        whole = info.replica_identity is ReplicaIdentity.FULL
        key = frozenset([column for column, _ in listed] if whole else info.identity_columns)
        if (schema, name) not in self._asked and not _agrees(listing, known, key, frozenset()):
            # Altered since the catalog was asked; or, if the answer does not change, after the message was written.
            self._asked.add((schema, name))
            self._relations.forget(schema, name)
            raise CatalogMiss(relations=[(schema, name)])
        relation, _ = self._relations.build(schema, name, listed, info)
        table = before
        if table is None or table.relation is not relation:
            table = _Table(relation)
        table.listed, table.key = listed, key
        if listing.action == "U":
            table.absent |= set(listed) - set(listing.columns or ())
        self._asked.discard((schema, name))
        return table

    def _truncate(self, message: _Message, payload: bytes, data_start: int) -> Change | None:
        if not message.schema or not message.table:
            raise DecodeError("a truncate without its table", payload)
        table = self._tables.get(_table_key(message.schema, message.table))
        if table is not None:
            relation = table.relation
        else:
            info = self._relations.info(message.schema, message.table)
            known = tuple((column.name, column.type_oid) for column in info.columns)
            relation = None
            if self._wanted(*root_name(message.schema, message.table, info)):
                relation, _ = self._relations.build(message.schema, message.table, known, info)
        self._ordinal += 1
        if relation is None:
            return None
        return Change(relation, Operation.TRUNCATE, None, None, data_start, self._ordinal - 1)


_ROWS: Final = frozenset({b"I", b"U", b"D"})


def _agrees(listing: Listing, listed: Listed, key: frozenset[str], absent: frozenset[tuple[str, int]]) -> bool:
    """Whether a message may be of a table with these columns, of which an UPDATE may leave out the ``absent`` ones."""
    columns = set(listing.columns or ())
    if listing.action == "I":
        return columns == set(listed)
    if listing.action == "U" and not (columns <= set(listed) and set(listed) - columns <= absent):
        return False
    identity = listing.identity or ()
    return {name for name, _ in identity} == key and set(identity) <= set(listed)


def _complete(listing: Listing, known: Listed, before: Listed) -> Listed:
    """All columns of the table at the time of a message that may leave some out.

    The catalog knows them, unless it has been altered again since; then the messages before this one may.
    """
    if listing.action == "I":
        return listing.columns or ()
    listed = merge(listing.columns or (), listing.identity or ())
    given = dict(listed)
    if given.keys() <= dict(known).keys():
        if listing.action == "U":
            # Only values outside the row are left out. A column of another type is newer than the message.
            known = tuple(column for column in known if column[0] in given or column[1] not in NEVER_TOASTED)
    elif given.keys() <= dict(before).keys():
        known = before
    else:
        return listed
    return tuple((name, given.get(name, oid)) for name, oid in known)


def _table_key(schema: str, name: str) -> bytes:
    return b'"schema":%b,"table":%b' % (_encode(schema), _encode(name))


def _listed(columns: list[_Column] | None) -> Listed | None:
    return None if columns is None else tuple([(column.name, column.typeoid) for column in columns])


def _begin(message: _Message, payload: bytes) -> Begin:
    if message.xid is None or message.timestamp is None:
        raise DecodeError("a begin without xid or timestamp", payload)
    try:
        at = datetime.fromisoformat(message.timestamp)
    except ValueError as error:
        raise DecodeError(f"not a timestamp: {message.timestamp!r}", payload) from error
    if at.tzinfo is None:
        raise DecodeError("a timestamp without a zone", payload)
    return Begin(message.xid, (at - _EPOCH) // _MICROSECOND, _lsn(message.lsn, payload) if message.lsn else 0)


def _fast_begin(payload: bytes) -> Begin | None:
    """What ``_begin`` says of the usual message; None for any other."""
    found = _BEGIN(payload)
    if found is None:
        return None
    xid, second, fraction, high, low = found.groups()
    at = _microseconds(second) + int(fraction.ljust(6, b"0") if fraction else 0)
    return Begin(int(xid), at, (int(high, 16) << 32) | int(low, 16))


@lru_cache(maxsize=64)
def _microseconds(second: bytes) -> int:
    """Since the Unix epoch, of a text in UTC that transactions share by the thousand. Raises ValueError."""
    return (datetime.fromisoformat(second.decode("ascii")).replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def _commit(payload: bytes) -> Commit:
    found = _COMMIT(payload)
    if found is None:
        raise DecodeError("a commit without its end position", payload)
    return Commit((int(found[1], 16) << 32) | int(found[2], 16))


def _lsn(text: str, payload: bytes) -> int:
    try:
        return Lsn.parse(text)
    except ValueError as error:
        raise DecodeError(f"not an LSN: {text!r}", payload) from error
