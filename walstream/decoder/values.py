"""The value table: every PostgreSQL type's JSON form, for the text of pgoutput and for the JSON of wal2json alike.

The forms are those of ``to_jsonb`` under UTC and ISO settings, with bytea as bare hex, and NaN and Infinity as null.
How texts of arrays and records are cut into parts is in ``nested``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import msgspec

from walstream.decoder.nested import NULL, read_array, read_hstore, read_record
from walstream.decoder.pieces import Text, brackets, is_utf8, quote, repaired, unquote
from walstream.errors import DecodeError
from walstream.model import Catalog, CatalogMiss, TypeInfo

Converter: TypeAlias = Callable[[bytes], bytes]
"""One value, never NULL, to one JSON value. Raises DecodeError for what no server prints."""

BOOL, BYTEA, INT8, INT2, INT2VECTOR, INT4, OID, OIDVECTOR, JSON = 16, 17, 20, 21, 22, 23, 26, 30, 114
FLOAT4, FLOAT8, TIMESTAMP, TIMESTAMPTZ, NUMERIC, JSONB = 700, 701, 1114, 1184, 1700, 3802

NUMBERS: Final = frozenset({INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC})
"""Types whose values are JSON numbers (or null)."""

NEVER_TOASTED: Final = frozenset(
    {BOOL, INT2, INT4, INT8, OID, FLOAT4, FLOAT8, TIMESTAMP, TIMESTAMPTZ}
    # "char", name, point, lseg, box, macaddr8, circle, money, macaddr,
    # date, time, interval, timetz, regclass, uuid, pg_lsn
    | {18, 19, 600, 601, 603, 774, 718, 790, 829, 1082, 1083, 1186, 1266, 2205, 2950, 3220}
)
"""Types of fixed length: their values lie in the row, so no UPDATE leaves them out."""

_encode = msgspec.json.Encoder().encode
_skip = msgspec.json.Decoder(msgspec.Raw).decode

_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_NOT_FINITE: Final = frozenset({b"NaN", b"Infinity", b"-Infinity"})
_HEX: Final = re.compile(rb"\\x(?:[0-9a-f]{2})*+")
_TIMESTAMP: Final = re.compile(rb"([0-9]{4,6}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)( BC)?")
_TIMESTAMPTZ: Final = re.compile(
    rb"([0-9]{4,6}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)"
    rb"([+-][0-9]{2})((?::[0-9]{2}){1,2})?( BC)?"
)

NESTING_MAX: Final = 100
"""Levels of a json value; common parsers stop at 128, and the value stands inside a row inside a frame."""


def type_info(oid: int, catalog: Catalog) -> TypeInfo | None:
    """The type's facts; None for a type that no longer exists. Raises CatalogMiss."""
    if oid not in catalog.types:
        raise CatalogMiss(types=(oid,))
    return catalog.types[oid]


def types_inside(oids: Iterable[int], catalog: Catalog) -> dict[int, TypeInfo | None]:
    """The types and all that their values hold: elements, bases, fields. Raises CatalogMiss for all missing."""
    found: dict[int, TypeInfo | None] = {}
    missing: set[int] = set()
    waiting = list(oids)
    while waiting:
        oid = waiting.pop()
        if oid in found or oid in missing:
            continue
        if oid not in catalog.types:
            missing.add(oid)
            continue
        info = found[oid] = catalog.types[oid]
        if info is not None:
            waiting += [inner for inner in (info.element, info.base, *(field for _, field in info.fields)) if inner]
    if missing:
        raise CatalogMiss(types=missing)
    return found


def from_text(info: TypeInfo | None, catalog: Catalog) -> Converter:
    """Converter for a value as the type's output function prints it. Raises CatalogMiss for the types inside it."""
    if info is None:
        return quote
    if info.oid in _SCALARS:
        return _SCALARS[info.oid]
    if info.kind == "d":
        return from_text(type_info(info.base, catalog), catalog)
    if info.category == "A" and info.element:
        return _array(info, from_text(type_info(info.element, catalog), catalog))
    if info.kind == "c":
        return _Composite(info, catalog)
    if info.name == "hstore" and info.kind == "b":
        return _hstore
    return quote


def convert_large(convert: Converter, text: memoryview) -> bytes:
    """What a converter of ``from_text`` makes of a large text within a message, copied no more often than it must."""
    of_view = _OF_VIEWS.get(convert)
    return convert(bytes(text)) if of_view is None else of_view(text)


def from_wal2json(info: TypeInfo | None, catalog: Catalog) -> Converter | None:
    """Converter for wal2json's JSON of a value or NULL; None where that is right as it stands. Raises CatalogMiss."""
    if info is None or info.oid in NUMBERS or info.oid in (BOOL, BYTEA):
        return None
    if info.oid in _JSON_SCALARS:
        return _JSON_SCALARS[info.oid]
    convert = from_text(info, catalog)
    return None if convert is quote and info.kind != "d" else Unquoted(convert)


def _number(text: bytes) -> bytes:
    if text in _NOT_FINITE:
        return NULL
    if _NUMBER.fullmatch(text) is None:
        raise DecodeError("not a number", text)
    return text


def _integer(text: bytes) -> bytes:
    return text if text.isdigit() and text[0] != 0x30 else _number(text)


def _bool(text: bytes) -> bytes:
    if text == b"t":
        return b"true"
    if text == b"f":
        return b"false"
    raise DecodeError("not a boolean", text)


def _bytea(text: Text) -> bytes:
    if _HEX.fullmatch(text) is None:  # bytea_output is not hex; what wal2json makes of that is not the value
        raise DecodeError("not a bytea in hex", bytes(text[:100]))
    return b"".join((b'"', memoryview(text)[2:], b'"'))  # copied once, for it may be large


def _timestamp(text: bytes) -> bytes:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:  # infinity, -infinity
        return quote(text)
    date, time, era = match.groups(b"")
    return b'"%bT%b%b"' % (date, time, era)


def _timestamptz(text: bytes) -> bytes:
    match = _TIMESTAMPTZ.fullmatch(text)
    if match is None:
        return quote(text)
    date, time, hours, rest, era = match.groups()
    return b'"%bT%b%b%b%b"' % (date, time, hours, rest or b":00", era or b"")


def _json(text: Text) -> bytes:
    """The value itself, spliced; as a string where a JSON parser of ours or of a client may refuse it.

    The type json takes what parsers do not: half a surrogate pair, nesting without end.
    """
    if not is_utf8(text):
        text = repaired(bytes(text))
    try:
        value = _skip(text)
    except (ValueError, RecursionError):
        return quote(text)
    # A jsonb is nothing but the value, and not copied again.
    bare = text if isinstance(text, bytes) and len(text) == len(value) else bytes(value)
    return bare if _is_shallow(bare) else quote(text)


def _is_shallow(value: bytes) -> bool:
    """Whether a JSON value is not nested deeper than ``NESTING_MAX``. How deep Python is just now plays no part."""
    if value.count(b"[") + value.count(b"{") <= NESTING_MAX:
        return True
    left = brackets(value)
    for _ in range(NESTING_MAX):  # each round takes away the innermost level
        left = left.replace(b"[]", b"")
        if not left:
            return True
    return False


def _oid(text: bytes) -> bytes:
    if not text.isdigit():
        raise DecodeError("not an OID", text)
    return b'"%b"' % text


def _vector(convert: Converter) -> Converter:
    def apply(text: bytes) -> bytes:
        return b"[%b]" % b",".join([convert(item) for item in text.split()])

    return apply


def _array(info: TypeInfo, element: Converter) -> Converter:
    delimiter = info.delimiter.encode()

    def apply(text: bytes) -> bytes:
        if text[:1] not in (b"{", b"["):  # a type that only calls itself an array
            return quote(text)
        return read_array(text, element, delimiter)

    return apply


class _Composite:
    """Converter of one composite type. A value does not say which fields it has, only how many."""

    __slots__ = ("_asked", "_catalog", "_info", "_members")

    def __init__(self, info: TypeInfo, catalog: Catalog) -> None:
        self._catalog = catalog
        self._asked: set[int] = set()
        self._know(info)

    def _know(self, info: TypeInfo) -> None:
        catalog = self._catalog
        self._members = [
            (b"%b:" % _encode(name), from_text(type_info(oid, catalog), catalog)) for name, oid in info.fields
        ]
        self._info = info

    def __call__(self, text: bytes) -> bytes:
        values = [] if text == b"()" and not self._members else read_record(text)
        if len(values) != len(self._members):
            self._ask(len(values))
            if len(values) != len(self._members):  # the catalog knows a later definition: give the text
                return quote(text)
        members = [
            key + (NULL if value is None else convert(value))
            for (key, convert), value in zip(self._members, values, strict=True)
        ]
        return b"{%b}" % b",".join(members)

    def _ask(self, count: int) -> None:
        """The type was altered: what the catalog says now, asked once for each number of fields. Raises CatalogMiss."""
        oid = self._info.oid
        if count not in self._asked:
            self._asked.add(count)
            raise CatalogMiss(types=(oid,))
        info = type_info(oid, self._catalog)
        if info is not None and info is not self._info:
            self._know(info)


def _hstore(text: bytes) -> bytes:
    pairs = read_hstore(text)
    if pairs is None:  # another type of that name
        return quote(text)
    members = [quote(key) + b":" + (NULL if value is None else quote(value)) for key, value in pairs]
    return b"{%b}" % b",".join(members)


class Unquoted:
    """Converter for a value that wal2json writes as a JSON string of its text; takes views of messages, too."""

    __slots__ = ("_convert",)

    def __init__(self, convert: Converter) -> None:
        self._convert = convert

    def __call__(self, value: Text) -> bytes:
        """The JSON of a value or NULL. Raises DecodeError."""
        if value == NULL:
            return NULL
        try:
            text = unquote(value)
        except ValueError as error:
            raise DecodeError(f"not a JSON string: {error}", bytes(value[:200])) from error
        return self._convert(text)


def _oid_in_json(value: bytes) -> bytes:
    return value if value == NULL else _oid(value)


def _timestamp_in_json(value: bytes) -> bytes:
    # "2024-02-29 13:14:15": nothing in it is escaped. Longer years and infinity go the long way.
    if value[11:12] == b" ":
        return value.replace(b" ", b"T", 1)
    return _slow_timestamp(value)


def _timestamptz_in_json(value: bytes) -> bytes:
    if value[11:12] == b" " and value.endswith(b'+00"'):
        return value.replace(b" ", b"T", 1)[:-1] + b':00"'
    return _slow_timestamptz(value)


_slow_timestamp: Final = Unquoted(_timestamp)
_slow_timestamptz: Final = Unquoted(_timestamptz)

_SCALARS: Final[dict[int, Converter]] = {
    **dict.fromkeys((INT2, INT4, INT8), _integer),
    **dict.fromkeys((FLOAT4, FLOAT8, NUMERIC), _number),
    BOOL: _bool,
    BYTEA: _bytea,
    OID: _oid,
    INT2VECTOR: _vector(_integer),
    OIDVECTOR: _vector(_oid),
    TIMESTAMP: _timestamp,
    TIMESTAMPTZ: _timestamptz,
    JSON: _json,
    JSONB: _json,
}

_OF_VIEWS: Final[dict[Converter, Callable[[memoryview], bytes]]] = {quote: quote, _bytea: _bytea, _json: _json}

_JSON_SCALARS: Final[dict[int, Converter]] = {
    OID: _oid_in_json,
    TIMESTAMP: _timestamp_in_json,
    TIMESTAMPTZ: _timestamptz_in_json,
}
