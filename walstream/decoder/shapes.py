"""Shapes of wal2json's row messages: the columns that they list, where their values belong, and how to cut them out.

Which shape a message has, and which relation it speaks of, is found out in ``wal2json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from walstream.decoder.pieces import PIECE_BYTES
from walstream.decoder.relations import Listed, arrange, restore
from walstream.decoder.values import BOOL, INT2, INT4, INT8, NUMBERS, OID, Converter, Unquoted, from_wal2json, type_info
from walstream.errors import DecodeError
from walstream.model import Catalog, Operation, Relation, Row

Match = Callable[[bytes, int], "re.Match[bytes] | None"]

OPERATIONS: Final = {"I": Operation.INSERT, "U": Operation.UPDATE, "D": Operation.DELETE}

MAX_COLUMNS: Final = 200
"""Longer lists get no pattern: it would take longer to make than most tables have rows to read."""

# What wal2json prints for a value, and nothing else: what these let through is valid JSON. Possessive, so that no
# value is looked at twice.
_INTEGER: Final = rb"(-?[1-9][0-9]*+|0|null)"
_NUMBER: Final = rb"(-?(?:[1-9][0-9]*+|0)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|null)"
_TRUTH: Final = rb"(true|false|null)"
_STRING: Final = rb'("[^"\\\x00-\x1f]*+(?:\\(?:["\\bfnrt]|u00[0-9a-f]{2})[^"\\\x00-\x1f]*+)*+"|null)'

_encode = msgspec.json.Encoder().encode


class Listing(NamedTuple):
    """What tells row messages of one table apart. None: the message has no such list."""

    action: str
    columns: Listed | None
    identity: Listed | None


class Shape:
    """How to read the messages with one listing. ``match`` begins at the message's ``"schema":``; see ``learn``.

    ``table``: how its messages name their table.
    ``converters``: of the cells of both lists, one after the other. ``is_plain``: a new row in the relation's own
    order and nothing else, so that the converted cells are the row.
    """

    __slots__ = (
        "_count",
        "_is_ordered",
        "_listing",
        "_new",
        "_old",
        "action",
        "converters",
        "is_plain",
        "match",
        "operation",
        "relation",
        "table",
    )

    def __init__(self, listing: Listing, table: bytes, relation: Relation, catalog: Catalog) -> None:
        """``table``: the members of the message that name it. Raises CatalogMiss, or DecodeError for alien columns."""
        self._listing = listing
        self.table = table
        self.match = NO_MATCH
        self.action = ord(listing.action)
        self.operation = OPERATIONS[listing.action]
        self.relation = relation
        columns, identity = listing.columns or (), listing.identity or ()
        self._count = len(columns)
        # An INSERT has no old row and a DELETE no new one, whatever the message may say.
        self._new = None if listing.action == "D" else _order(columns, relation)
        self._old = None if listing.action == "I" or listing.identity is None else _order(identity, relation)
        self.converters: list[tuple[int, Converter]] = []
        for index, (_, oid) in enumerate((*columns, *identity)):
            convert = from_wal2json(type_info(oid, catalog), catalog)
            if convert is not None:
                self.converters.append((index, convert))
        self._is_ordered = self._new == tuple(range(len(columns))) and len(columns) == len(relation.columns)
        self.is_plain = listing.action == "I" and not identity and self._is_ordered

    def learn(self) -> None:
        """Make the pattern. Worth it for a shape that was met twice: some hundred microseconds."""
        if (
            self.match is NO_MATCH
            and len(self._listing.columns or ()) + len(self._listing.identity or ()) <= MAX_COLUMNS
        ):
            self.match = _pattern(self._listing, self.table)

    def converted(self, rows: Iterable[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
        """The rows of several messages with raw values converted; the same value as in the row before only once.

        Raises DecodeError or CatalogMiss.
        """
        done = [*map(list, rows)]
        for index, convert in self.converters:
            before = after = b""
            for cells in done:
                cell = cells[index]
                if cell != before:
                    before, after = cell, convert(cell)
                cells[index] = after
        return [*map(tuple, done)]

    def rows(self, cells: list[bytes]) -> tuple[Row | None, Row | None]:
        """New and old row out of the raw values of both lists, which are converted in place.

        Raises DecodeError or CatalogMiss.
        """
        for index, convert in self.converters:
            cells[index] = convert(cells[index])
        return self._arranged(cells)

    def rows_of_views(self, views: Iterable[memoryview]) -> tuple[Row | None, Row | None]:
        """As ``rows``, of values that lie in a message: a large one is not copied before it is converted."""
        converters = dict(self.converters)
        return self._arranged([_cell(view, converters.get(index)) for index, view in enumerate(views)])

    def _arranged(self, cells: list[bytes]) -> tuple[Row | None, Row | None]:
        count = self._count
        old = arrange([*cells[count:], None], self._old) if self._old is not None else None
        if self._new is None:
            return None, old
        new = tuple(cells[:count]) if self._is_ordered else arrange([*cells[:count], None], self._new)
        return restore(new, old), old


def _cell(view: memoryview, convert: Converter | None) -> bytes:
    if len(view) > PIECE_BYTES and isinstance(convert, Unquoted):
        return convert(view)
    return bytes(view) if convert is None else convert(bytes(view))


def _order(listed: Listed, relation: Relation) -> tuple[int, ...]:
    """For each column of the relation the index of its cell; that behind the last for one that is not listed."""
    index = {name: at for at, (name, _) in enumerate(listed)}
    if len(index) != len(listed) or not index.keys() <= relation.positions.keys():
        raise DecodeError(f"not the columns of {relation.schema}.{relation.name}: {', '.join(index)}")
    return tuple([index.get(column.name, len(listed)) for column in relation.columns])


def _pattern(listing: Listing, table: bytes) -> Match:
    parts = [re.escape(table)]
    for name, listed in ((b"columns", listing.columns), (b"identity", listing.identity)):
        if listed is not None:
            parts.append(rb',"%b":\[%b\]' % (name, b",".join([_column(*column) for column in listed])))
    return re.compile(b"".join(parts) + rb"\}").fullmatch


def _column(name: str, oid: int) -> bytes:
    if oid in (INT2, INT4, INT8, OID):
        value = _INTEGER
    elif oid in NUMBERS:
        value = _NUMBER
    elif oid == BOOL:
        value = _TRUTH
    else:
        value = _STRING
    return rb'\{"name":%b,"typeoid":%d,"value":%b\}' % (re.escape(_encode(name)), oid, value)


NO_MATCH: Final[Match] = re.compile(rb"(?!)").fullmatch
"""Matches nothing."""
