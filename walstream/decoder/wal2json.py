"""wal2json, format version 2: one JSON object per message.

Rows take a road that never parses JSON; whatever it does not recognise goes the strict road, which is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import getitem
from typing import Final

import msgspec

from walstream.decoder.api import Wanted
from walstream.decoder.relations import build, relation_info, root_name
from walstream.decoder.values import from_wal2json, type_info
from walstream.errors import DecodeError
from walstream.lsn import Lsn
from walstream.model import Begin, Catalog, Change, Commit, Message, Operation, Record, Relation, Row

MESSAGE_PREFIX: Final = "walstream"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_encode = msgspec.json.Encoder().encode


class _Column(msgspec.Struct, gc=False):
    name: str
    typeoid: int
    value: msgspec.Raw


class _Message(msgspec.Struct, gc=False):
    action: str
    xid: int | None = None
    timestamp: str | None = None
    lsn: str = ""
    nextlsn: str = ""
    schema: str = ""
    table: str = ""
    columns: list[_Column] | None = None
    identity: list[_Column] | None = None
    transactional: bool = False
    prefix: str = ""
    content: str = ""


_decode_message = msgspec.json.Decoder(_Message).decode

_OPERATIONS: Final = {"I": Operation.INSERT, "U": Operation.UPDATE, "D": Operation.DELETE}
_startswith = bytes.startswith


class _Cells:
    """How to cut the cells out of one list of columns, and where they belong in a row."""

    __slots__ = ("converters", "order", "prefixes", "slices", "width")

    def __init__(self, names: list[tuple[str, int]], relation: Relation, catalog: Catalog) -> None:
        self.prefixes = [b'%b,"typeoid":%d,"value":' % (_encode(name), oid) for name, oid in names]
        self.slices = [slice(len(prefix), None) for prefix in self.prefixes]
        self.width = len(relation.columns)
        positions = relation.positions
        places = [positions[name] for name, _ in names]
        # None where the row's cells come in the relation's own order and all of them.
        self.order = None if places == list(range(self.width)) else places
        self.converters: list[tuple[int, Callable[[bytes], bytes]]] = []
        for index, (_, oid) in enumerate(names):
            convert = from_wal2json(type_info(oid, catalog), catalog)
            if convert is not None:
                self.converters.append((index, convert))

    def cut(self, body: bytes) -> Row | None:
        """The row in ``body``, what stands between ``[{"name":`` and ``}]``; None if it is not what was expected."""
        # A bare quote cannot occur inside a JSON string, so this text only ever separates columns.
        pieces = body.split(b'},{"name":')
        prefixes = self.prefixes
        if len(pieces) != len(prefixes) or not all(map(_startswith, pieces, prefixes)):
            return None
        cells = list(map(getitem, pieces, self.slices))
        return self.place(cells)

    def place(self, cells: list[bytes]) -> Row:
        """Raw cells, in the message's order, as a row."""
        for index, convert in self.converters:
            cells[index] = convert(cells[index])
        if self.order is None:
            return tuple(cells)
        row: list[bytes | None] = [None] * self.width
        for place, cell in zip(self.order, cells, strict=True):
            row[place] = cell
        return tuple(row)


class _Table:
    """One relation as it is decoded now. ``columns``/``identity``: by the names and OIDs that a message lists."""

    __slots__ = ("cells", "expected", "identity", "names", "relation", "wanted")

    def __init__(self, wanted: bool, relation: Relation | None, names: list[tuple[str, int]]) -> None:
        self.wanted = wanted
        self.relation = relation
        self.names = names
        self.expected: _Cells | None = None  # of a whole row
        self.identity: _Cells | None = None  # of the usual old row
        self.cells: dict[tuple[tuple[str, int], ...], _Cells] = {}


class Wal2json:
    """The decoder. ``filter_tables``: wal2json's own list of tables to leave out."""

    plugin = "wal2json"

    def __init__(self, catalog: Catalog, *, wanted: Wanted, filter_tables: str = "") -> None:
        self._catalog = catalog
        self._wanted = wanted
        self._filter_tables = filter_tables
        self._tables: dict[bytes, _Table] = {}
        self._refreshed: set[tuple[str, str]] = set()
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
        """Forget what ``wanted`` answered, and every relation with it."""
        self._tables.clear()

    def reset(self) -> None:
        """Forget the transaction that was under way."""
        self._ordinal = 0
        self._at = 0  # where "lsn" begins in every message of this transaction

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        """See ``Decoder.decode``."""
        action = payload[11:12]
        if action == b"I" and payload.endswith(b"}]}"):
            change = self._fast_insert(payload, data_start)
            if change is not None:
                return change if change is not _UNWANTED else None
        elif action == b"C":
            return self._commit(payload)
        return self._strict(payload, data_start)

    def _fast_insert(self, payload: bytes, data_start: int) -> Change | None:
        at = payload.find(b'"schema":', self._at)
        end = payload.find(b',"columns":[{"name":', at)
        table = self._tables.get(payload[at:end])
        if table is None:
            return None
        if not table.wanted:
            return _UNWANTED
        cells = table.expected
        if cells is None or table.relation is None:
            return None
        row = cells.cut(payload[end + 20 : -3])
        if row is None:
            return None
        ordinal = self._ordinal
        self._ordinal = ordinal + 1
        return Change(table.relation, Operation.INSERT, row, None, data_start, ordinal)

    def _commit(self, payload: bytes) -> Commit:
        at = payload.rfind(b'"nextlsn":"')
        if at < 0 or not payload.endswith(b'"}'):
            raise DecodeError("a commit without its end position", payload)
        return Commit(_lsn(payload[at + 11 : -2].decode("ascii", "replace"), payload))

    # -- the strict road

    def _strict(self, payload: bytes, data_start: int) -> Record | None:
        try:
            message = _decode_message(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not a wal2json message: {error}", payload) from error
        action = message.action
        if action in _OPERATIONS:
            return self._row(message, payload, data_start)
        if action == "B":
            return self._begin(message, payload)
        if action == "C":
            return Commit(_lsn(message.nextlsn, payload))
        if action == "T":
            return self._truncate(message, payload, data_start)
        if action == "M":
            content = message.content.encode("utf-8", "surrogatepass")
            return Message(message.prefix, content, message.transactional, _lsn(message.lsn, payload))
        raise DecodeError(f"unknown action {action!r}", payload)

    def _begin(self, message: _Message, payload: bytes) -> Begin:
        self._ordinal = 0
        self._at = max(0, payload.find(b'"lsn":'))
        if message.xid is None or message.timestamp is None:
            raise DecodeError("a begin without xid or timestamp", payload)
        try:
            at = datetime.fromisoformat(message.timestamp)
        except ValueError as error:
            raise DecodeError(f"not a timestamp: {message.timestamp!r}", payload) from error
        if at.tzinfo is None:
            raise DecodeError("a timestamp without a zone", payload)
        return Begin(message.xid & 0xFFFFFFFF, (at - _EPOCH) // _MICROSECOND)

    def _row(self, message: _Message, payload: bytes, data_start: int) -> Change | None:
        if not message.schema or not message.table:
            raise DecodeError("a row without its table", payload)
        table = self._table(message)
        if not table.wanted or table.relation is None:
            return None
        operation = _OPERATIONS[message.action]
        new = old = None
        if operation is not Operation.DELETE:
            if message.columns is None:
                raise DecodeError("a row without columns", payload)
            new = self._cells(table, message.columns).place([_raw(column) for column in message.columns])
        if operation is not Operation.INSERT and message.identity is not None:
            old = self._cells(table, message.identity).place([_raw(column) for column in message.identity])
        if new is not None and old is not None and None in new:
            # REPLICA IDENTITY FULL has in the old row what the new one leaves out as unchanged.
            new = tuple(before if after is None else after for after, before in zip(new, old, strict=True))
        change = Change(table.relation, operation, new, old, data_start, self._ordinal)
        self._ordinal += 1
        return change

    def _table(self, message: _Message) -> _Table:
        """The table's plan, made anew when the message does not fit it. Raises CatalogMiss."""
        key = b'"schema":%b,"table":%b' % (_encode(message.schema), _encode(message.table))
        table = self._tables.get(key)
        listed = [(column.name, column.typeoid) for column in (message.columns or message.identity or ())]
        if table is not None:
            whole = message.action != "I" or listed == table.names
            if not table.wanted or (whole and set(listed) <= set(table.names)):
                return table
            self._refresh((message.schema, message.table))
        info = relation_info(message.schema, message.table, self._catalog)
        if not self._wanted(*root_name(message.schema, message.table, info)):
            table = self._tables[key] = _Table(False, None, [])
            return table
        names = listed
        if message.action != "I":
            names = _with_known(listed, [(column.name, column.type_oid) for column in info.columns])
        relation, _ = build(message.schema, message.table, names, info, self._catalog)
        table = _Table(True, relation, names)
        table.expected = _Cells(names, relation, self._catalog)
        self._tables[key] = table
        self._refreshed.discard((message.schema, message.table))
        return table

    def _refresh(self, name: tuple[str, str]) -> None:
        """The table was altered: what the catalog said of it before is asked again, once."""
        if name not in self._refreshed:
            self._refreshed.add(name)
            self._catalog.relations.pop(name, None)

    def _cells(self, table: _Table, columns: list[_Column]) -> _Cells:
        key = tuple((column.name, column.typeoid) for column in columns)
        cells = table.cells.get(key)
        if cells is None:
            assert table.relation is not None
            if not {name for name, _ in key} <= set(table.relation.positions):
                raise DecodeError(f"columns that {table.relation.name} does not have")
            cells = table.cells[key] = _Cells(list(key), table.relation, self._catalog)
        return cells

    def _truncate(self, message: _Message, payload: bytes, data_start: int) -> Change | None:
        if not message.schema or not message.table:
            raise DecodeError("a truncate without its table", payload)
        info = relation_info(message.schema, message.table, self._catalog)
        if not self._wanted(*root_name(message.schema, message.table, info)):
            return None
        key = b'"schema":%b,"table":%b' % (_encode(message.schema), _encode(message.table))
        table = self._tables.get(key)
        relation = table.relation if table is not None else None
        if relation is None:
            names = [(column.name, column.type_oid) for column in info.columns]
            relation, _ = build(message.schema, message.table, names, info, self._catalog)
        change = Change(relation, Operation.TRUNCATE, None, None, data_start, self._ordinal)
        self._ordinal += 1
        return change


def _with_known(listed: list[tuple[str, int]], known: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The columns of a message that may leave some out, completed by the catalog's if they fit."""
    names = [name for name, _ in listed]
    known_names = [name for name, _ in known]
    if set(names) <= set(known_names):
        given = dict(listed)
        return [(name, given.get(name, oid)) for name, oid in known]
    return listed


def _raw(column: _Column) -> bytes:
    return bytes(column.value)


def _lsn(text: str, payload: bytes) -> int:
    try:
        return Lsn.parse(text)
    except ValueError as error:
        raise DecodeError(f"not an LSN: {text!r}", payload) from error


_UNWANTED: Final = Change(Relation("", "", ()), Operation.INSERT, None, None, 0)
