"""What comparing means for each PostgreSQL type: keys made of JSON cells that compare exactly as the server compares.

Types whose comparison cannot be repeated outside the server are known here by name and refused. Literals' own syntax
is in ``literals``, truth values are made in ``compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

import msgspec

from walstream.errors import FilterError
from walstream.model import Catalog, CatalogMiss, TypeInfo
from walstream.predicate import literals, temporal

Key: TypeAlias = Callable[[bytes], Any]
"""A cell that is not null as a hashable value. Raises ValueError or ArithmeticError for what is no such cell."""

NAME: Final = 19
"""OID of the type name."""

UNREADABLE: Final = (ValueError, ArithmeticError, RecursionError, TypeError)
"""What a Key raises for a cell of another shape than the value table's."""

_encode = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str).decode
_decode_json = msgspec.json.Decoder(float_hook=Decimal).decode


class Kind(msgspec.Struct, frozen=True):
    """How values of one base type compare.

    ``equal``: key for = and <>, None where they cannot be repeated; ``order``: key for < and >, likewise.
    ``cast``: a literal's cell, None where PostgreSQL has to cast it. ``text``: the value as patterns see it.
    ``collated``: the order is that of the column's collation. ``unbounded``: has values that JSON has no number for.
    """

    oid: int
    name: str
    equal: Key | None = None
    order: Key | None = None
    cast: Callable[[str], bytes] | None = None
    text: Callable[[bytes], str] | None = None
    collated: bool = False
    unbounded: bool = False
    boolean: bool = False


def _same(cell: bytes) -> bytes:
    return cell


def _unquoted(cell: bytes) -> bytes:
    if cell[:1] != b'"':
        raise ValueError("not a JSON string")
    return cell[1:-1]


def _decimal(cell: bytes) -> Decimal:
    return Decimal(cell.decode("ascii"))


def _stripped(cell: bytes) -> str:
    return _decode_text(cell).rstrip(" ")


def _inet(cell: bytes) -> str:
    """A whole address with or without its mask: inet's output leaves it out, its cast to text does not."""
    address = _decode_text(cell)
    return address.removesuffix("/128" if ":" in address else "/32")


def _oid(cell: bytes) -> int:
    return int(_unquoted(cell))


def _json(cell: bytes) -> Hashable:
    return _frozen(_decode_json(cell))


def _frozen(value: object) -> Hashable:
    """A JSON value as jsonb compares it: numbers by value, objects without order; true is no 1."""
    if isinstance(value, dict):
        return frozenset((name, _frozen(member)) for name, member in value.items()), "object"
    if isinstance(value, list):
        return tuple([_frozen(item) for item in value])
    if isinstance(value, bool):
        return ("bool", value)
    assert isinstance(value, str | int | Decimal) or value is None
    return value


class _Remembered:
    """A key that costs more to make than to look at twice: many filters ask for the same cell in turn."""

    __slots__ = ("_key", "_last")

    def __init__(self, key: Key) -> None:
        self._key = key
        self._last: tuple[bytes, Any] = (b"", None)

    def __call__(self, cell: bytes) -> Any:
        last = self._last
        if last[0] is cell:
            return last[1]
        value = self._key(cell)
        # One assignment of a pair: a thread that casts literals must never see half of it.
        self._last = (cell, value)
        return value


def _encoded(cast: literals.Cast) -> Callable[[str], bytes]:
    return lambda text: _encode(cast(text))


def _integer(oid: int, name: str, said: str, bits: int) -> Kind:
    return Kind(oid, name, _same, int, _encoded(literals.integer(said, bits)))


def _words(oid: int, name: str, cast: literals.Cast = literals.text) -> Kind:
    return Kind(oid, name, _decode_text, _decode_text, _encoded(cast), _decode_text, collated=True)


def _dated(oid: int, name: str, key: Key) -> Kind:
    remembered = _Remembered(key)
    return Kind(oid, name, remembered, remembered)


def _bits(oid: int, name: str) -> Kind:
    return Kind(oid, name, _same, _unquoted, _encoded(literals.bits))


_KINDS: Final[Mapping[int, Kind]] = {
    kind.oid: kind
    for kind in (
        Kind(16, "bool", _same, _same, _encoded(literals.boolean), boolean=True),
        Kind(17, "bytea", _same, _unquoted),
        _words(NAME, "name", literals.name),
        _integer(20, "int8", "bigint", 64),
        _integer(21, "int2", "smallint", 16),
        _integer(23, "int4", "integer", 32),
        _words(25, "text"),
        Kind(26, "oid", _same, _oid),
        Kind(700, "float4", float, float, unbounded=True),
        Kind(701, "float8", float, float, unbounded=True),
        Kind(1042, "bpchar", _stripped, _stripped, _encoded(literals.padded), _decode_text, collated=True),
        _words(1043, "varchar"),
        _dated(1082, "date", temporal.date),
        _dated(1083, "time", temporal.time),
        _dated(1114, "timestamp", temporal.timestamp),
        _dated(1184, "timestamptz", temporal.timestamptz),
        _dated(1266, "timetz", temporal.timetz),
        _bits(1560, "bit"),
        _bits(1562, "varbit"),
        Kind(1700, "numeric", _decimal, _decimal, unbounded=True),
        Kind(2950, "uuid", _same, _unquoted, _encoded(literals.uuid)),
        Kind(3802, "jsonb", _Remembered(_json)),
        Kind(869, "inet", _inet),
        # Equal exactly when their canonical texts are.
        *(
            Kind(oid, name, _decode_text)
            for oid, name in (
                (18, "char"), (28, "xid"), (650, "cidr"), (774, "macaddr8"), (829, "macaddr"), (3220, "pg_lsn"),
                (3904, "int4range"), (3908, "tsrange"), (3912, "daterange"), (3926, "int8range"), (5069, "xid8"),
            )
        ),
    )
}  # fmt: skip

_SPELLINGS: Final[Mapping[str, str]] = {
    "boolean": "bool",
    "smallint": "int2",
    "integer": "int4",
    "int": "int4",
    "bigint": "int8",
    "real": "float4",
    "double precision": "float8",
    "decimal": "numeric",
    "character varying": "varchar",
    "char": "bpchar",
    "character": "bpchar",
    "bit varying": "varbit",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "time without time zone": "time",
    "time with time zone": "timetz",
}


def base_oid(oid: int, catalog: Catalog | None) -> int:
    """The type below all domains. Raises CatalogMiss for a type that ``catalog`` does not hold yet."""
    while catalog is not None and oid not in _KINDS:
        info = _info(oid, catalog)
        if info is None or info.kind != "d":
            break
        oid = info.base
    return oid


def casts_itself(oid: int) -> bool:
    """Whether a base type's literals need no PostgreSQL."""
    kind = _KINDS.get(oid)
    return kind is not None and kind.cast is not None


def kind_of(oid: int, catalog: Catalog) -> Kind:
    """How a type's values compare; a Kind without keys where they do not. Raises CatalogMiss."""
    base = base_oid(oid, catalog)
    kind = _KINDS.get(base)
    if kind is not None:
        return kind
    info = _info(base, catalog)
    if info is None:
        return Kind(base, "unknown")
    if info.kind == "e":
        ranks = {_encode(label): rank for rank, label in enumerate(info.labels)}
        return Kind(base, info.name, _decode_text, _ranked(ranks))
    return Kind(base, info.name)


def _ranked(ranks: Mapping[bytes, int]) -> Key:
    def rank(cell: bytes) -> int:
        found = ranks.get(_encode(_decode_text(cell)))
        if found is None:
            raise ValueError("a label that is not known yet")
        return found

    return rank


def _info(oid: int, catalog: Catalog) -> TypeInfo | None:
    if oid not in catalog.types:
        raise CatalogMiss(types=(oid,))
    return catalog.types[oid]


def check_cast(cast: str, column: str, oid: int, catalog: Catalog) -> None:
    """Raise FilterError unless ``cast`` names the column's type: a literal is always read as its column's."""
    if not cast:
        return
    kind = kind_of(oid, catalog)
    names = {kind.name}
    if oid != kind.oid:
        info = _info(oid, catalog)
        names |= {info.name} if info is not None else set()
    if kind.collated:
        names.add("text")
    plain = cast.removeprefix("pg_catalog.")
    if plain in names or _SPELLINGS.get(plain) in names:
        return
    raise FilterError(
        f"column {column} is of type {kind.name}, and its literal is cast to {cast}",
        repair="leave the cast out: a literal is read as a value of its column's type",
    )
