"""Constants of a parsed tree: values as they lie in the memory of a little-endian server.

Only types with a form that is the same everywhere are read; for others the policy is PostgreSQL's.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Final

from walstream.policy.nodes import Datum, Node, Unreadable
from walstream.policy.terms import BOOL, INT2, INT4, INT8, NAME, TEXT, UUID, VARCHAR, Fixed

BPCHAR: Final = 1042

_LENGTHS: Final = {INT2: 2, INT4: 4, INT8: 8}
_TEXTS: Final = frozenset({TEXT, VARCHAR, BPCHAR})

_ELEMENT_OF: Final = {1005: INT2, 1007: INT4, 1016: INT8, 1009: TEXT, 1015: VARCHAR, 2951: UUID}
"""Element types by array types."""

_ALIGNED: Final = {INT2: 2, INT4: 4, INT8: 8, TEXT: 4, VARCHAR: 4, UUID: 1}


def constant(node: Node, labels: Mapping[int, str]) -> Fixed:
    """A CONST node. ``labels``: of enums, by OID. Raises Unreadable."""
    if node.kind != "CONST":
        raise Unreadable(f"{node.kind} is no constant")
    oid = node.number("consttype")
    if node.flag("constisnull"):
        return Fixed(oid, None)
    return Fixed(oid, _value(oid, _datum(node), labels))


def _datum(node: Node) -> Datum:
    datum = node.get("constvalue")
    if not isinstance(datum, Datum):
        raise Unreadable("a constant without a value")
    return datum


def _value(oid: int, datum: Datum, labels: Mapping[int, str]) -> str | int | bool:
    data = datum.data
    if oid in _TEXTS:
        return _text(_unwrapped(data))
    if oid == NAME:
        return _text(data.split(b"\0", 1)[0])
    if oid == UUID and len(data) == 16:
        return str(uuid.UUID(bytes=data))
    if oid == BOOL and len(data) in (4, 8) and data[0] in (0, 1) and not any(data[1:]):
        return data[0] == 1
    if oid in _LENGTHS and len(data) >= _LENGTHS[oid]:
        return int.from_bytes(data[: _LENGTHS[oid]], "little", signed=True)
    if oid > 9999 and datum.length == 4 and len(data) in (4, 8):
        label = labels.get(int.from_bytes(data[:4], "little"))
        if label is not None:
            return label
    raise Unreadable(f"a constant of type {oid}")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Unreadable("a text that is not UTF-8") from None


def _unwrapped(data: bytes) -> bytes:
    """What a varlena holds; in trees they have the long header and are not compressed."""
    if len(data) < 4 or int.from_bytes(data[:4], "little") != len(data) << 2:
        raise Unreadable("a varlena of another form")
    return data[4:]


def list_constant(node: Node) -> tuple[Fixed, ...]:
    """A CONST node that is an array of one dimension, or empty. Raises Unreadable."""
    element = _ELEMENT_OF.get(node.number("consttype"))
    if element is None or node.flag("constisnull"):
        raise Unreadable("an array of another type")
    data = _datum(node).data
    _unwrapped(data)
    try:
        dimensions, offset, found = struct.unpack_from("<iiI", data, 4)
        if dimensions == 0:
            return ()
        (count,) = struct.unpack_from("<i", data, 16)
    except struct.error:
        raise Unreadable("half an array") from None
    if dimensions != 1 or offset != 0 or found != element:  # an offset tells of NULLs
        raise Unreadable("an array of another form")
    items, at = [], 24
    for _ in range(count):
        at += -at % _ALIGNED[element]
        length = _LENGTHS.get(element) or (16 if element == UUID else _length(data, at))
        piece = data[at : at + length]
        if len(piece) < length:
            raise Unreadable("half an array")
        items.append(Fixed(element, _value(element, Datum(length, piece), {})))
        at += length
    return tuple(items)


def _length(data: bytes, at: int) -> int:
    length = int.from_bytes(data[at : at + 4], "little") >> 2
    if length < 4:
        raise Unreadable("a varlena of another form")
    return length
