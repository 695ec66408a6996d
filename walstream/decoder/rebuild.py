"""The value table backwards: cells to JSON out of which PostgreSQL's ``json_to_recordset`` makes the very same values.

What cannot be told from a cell any more is said (``Lossy``) and never guessed. The way there is ``values``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from walstream.decoder.nested import NULL
from walstream.decoder.pieces import quote
from walstream.decoder.values import (
    BYTEA,
    FLOAT4,
    FLOAT8,
    INT2VECTOR,
    JSON,
    JSONB,
    NUMERIC,
    OIDVECTOR,
    from_text,
    type_info,
)
from walstream.model import Catalog, TypeInfo

Loss: TypeAlias = Literal["not_a_number", "lossy_value"]

Back: TypeAlias = Callable[[bytes], bytes]
"""One cell to the JSON that is read. Raises Lossy."""

NOT_FINITE: Final = (b'"NaN"', b'"Infinity"', b'"-Infinity"')
NAN: Final = NOT_FINITE[:1]
JSON_NULL: Final = (b'"null"',)

_CAN_BE_NAN: Final = frozenset({FLOAT4, FLOAT8, NUMERIC})
_VECTORS: Final = frozenset({INT2VECTOR, OIDVECTOR})
_JSONS: Final = frozenset({JSON, JSONB})

_encode = msgspec.json.Encoder().encode
_text = msgspec.json.Decoder(str).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_pairs = msgspec.json.Decoder(dict[str, str | None]).decode


class Lossy(Exception):
    """A cell of which nobody can say which value it stands for. ``reason``: a stable word."""

    def __init__(self, reason: Loss) -> None:
        super().__init__(reason)
        self.reason: Loss = reason


class Rebuild(NamedTuple):
    """How the cells of one type are read.

    ``as_text``: read as text and cast afterwards, since ``json_to_recordset`` itself would read something else.
    ``convert``: for cells that are not null; None where the cell is right as it stands. ``instead``: what else a null
    may have been in truth, beside NULL, as it would be read; ``loss`` says why.
    """

    as_text: bool = False
    convert: Back | None = None
    instead: tuple[bytes, ...] = ()
    loss: Loss = "not_a_number"


AS_IT_STANDS: Final = Rebuild()


def rebuild(info: TypeInfo | None, catalog: Catalog) -> Rebuild:
    """How to read a column of the type. Raises CatalogMiss for the types inside it."""
    if info is None:
        return AS_IT_STANDS
    if info.oid in _CAN_BE_NAN:
        return Rebuild(instead=NOT_FINITE)
    if info.oid in _JSONS:
        return Rebuild(as_text=True, convert=_json_as_text, instead=JSON_NULL, loss="lossy_value")
    if info.oid in _VECTORS:
        return Rebuild(as_text=True, convert=_vector)
    if info.kind == "d":
        return rebuild(type_info(info.base, catalog), catalog)
    return Rebuild(convert=_inside(info, catalog))


def _inside(info: TypeInfo | None, catalog: Catalog) -> Back | None:
    """For a value inside another one, null among them; None where it is right as it stands."""
    if info is None:
        return None
    if info.oid == BYTEA:
        return _bytea
    if info.oid in _CAN_BE_NAN:
        return _no_null("not_a_number")
    if info.oid in _JSONS:
        return _no_null("lossy_value")
    if info.oid in _VECTORS:
        return _lost
    if info.kind == "d":
        return _inside(type_info(info.base, catalog), catalog)
    if info.category == "A" and info.element:
        return _array(type_info(info.element, catalog), catalog)
    if info.kind == "c":
        return _Composite(info, catalog)
    if info.name == "hstore" and info.kind == "b":
        return _hstore
    return None


def _json_as_text(cell: bytes) -> bytes:
    """Quoted: as it stands, a null inside the text, half a letter or U+0000 would be something else, or refused."""
    if cell[:1] == b'"':
        content = _text(cell).encode()
        # Texts that clients' parsers may refuse travel as strings (docs/reference/values.md, 3).
        if content.lstrip(b" \t\n\r")[:1] in (b"{", b"[", b'"') and _as_json(content) == quote(content):
            raise Lossy("lossy_value")
    return _encode(cell.decode())


def _vector(cell: bytes) -> bytes:
    return _encode(" ".join(bytes(item).decode().strip('"') for item in _list(cell)))


def _bytea(cell: bytes) -> bytes:
    return cell if cell == NULL else b'"\\\\x' + cell[1:]


def _hstore(cell: bytes) -> bytes:
    if cell[:1] != b"{":
        return cell
    parts = [f"{_quoted(key)}=>{'NULL' if value is None else _quoted(value)}" for key, value in _pairs(cell).items()]
    return _encode(", ".join(parts))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _no_null(reason: Loss) -> Back:
    def apply(cell: bytes) -> bytes:
        if cell == NULL:
            raise Lossy(reason)
        return cell

    return apply


def _lost(cell: bytes) -> bytes:
    if cell == NULL:
        return cell
    raise Lossy("lossy_value")


def _array(element: TypeInfo | None, catalog: Catalog) -> Back | None:
    convert = _inside(element, catalog)
    if _prints_lists(element, catalog):
        return _array_of_lists(convert)
    if convert is None:
        return None

    def apply(cell: bytes) -> bytes:
        if cell[:1] != b"[":
            return cell  # NULL, or a text of a type that only calls itself an array
        items = [bytes(item) for item in _list(cell)]
        return b"[%b]" % b",".join([apply(item) if item[:1] == b"[" else convert(item) for item in items])

    return apply


def _array_of_lists(convert: Back | None) -> Back:
    """Where the dimensions end and the elements begin cannot be seen."""

    def apply(cell: bytes) -> bytes:
        if cell[:1] == b"[":
            for item in _list(cell):
                _lost(bytes(item))
                if convert is not None:
                    convert(bytes(item))
        return cell

    return apply


def _prints_lists(info: TypeInfo | None, catalog: Catalog) -> bool:
    """Whether values of the type may be JSON arrays themselves."""
    if info is None:
        return False
    if info.kind == "d":
        return _prints_lists(type_info(info.base, catalog), catalog)
    return info.oid in _JSONS or info.oid in _VECTORS or (info.category == "A" and bool(info.element))


class _Composite:
    """The fields of one composite type, each read by its own type."""

    __slots__ = ("_fields",)

    def __init__(self, info: TypeInfo, catalog: Catalog) -> None:
        self._fields = {name: _inside(type_info(oid, catalog), catalog) for name, oid in info.fields}

    def __call__(self, cell: bytes) -> bytes:
        if cell == NULL:
            return cell
        if cell[:1] != b"{":  # of a former definition, given as text
            raise Lossy("lossy_value")
        members = []
        for name, value in _object(cell).items():
            convert = self._fields.get(name)
            text = bytes(value)
            members.append(b"%b:%b" % (_encode(name), text if convert is None else convert(text)))
        return b"{%b}" % b",".join(members)


_as_json = from_text(TypeInfo(oid=JSON, name="json"), Catalog())
