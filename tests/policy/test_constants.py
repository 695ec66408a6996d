"""Constants are read out of the server's memory, or not at all."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.policy.constants import constant, list_constant
from walstream.policy.nodes import Datum, Node, Unreadable
from walstream.policy.terms import BOOL, INT2, INT4, INT8, NAME, TEXT, UUID, Fixed

LABELS = {70000: "ok"}


def node(oid: int, data: bytes, length: int | None = None) -> Node:
    datum = Datum(len(data) if length is None else length, data)
    return Node("CONST", {"consttype": str(oid), "constisnull": "false", "constvalue": datum})


def varlena(data: bytes) -> bytes:
    return ((len(data) + 4) << 2).to_bytes(4, "little") + data


def array(oid: int, items: list[bytes], align: int) -> bytes:
    body = bytearray()
    for item in items:
        body += b"\0" * (-len(body) % align) + item
    head = b"".join(n.to_bytes(4, "little") for n in ((1, 0, oid, len(items), 1) if items else (0, 0, oid)))
    return varlena(head + bytes(body))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_texts(text: str) -> None:
    assert constant(node(TEXT, varlena(text.encode())), {}) == Fixed(TEXT, text)


@given(st.sampled_from([(INT2, 16), (INT4, 32), (INT8, 64)]), st.data())
def test_integers(kind: tuple[int, int], data: st.DataObject) -> None:
    oid, bits = kind
    value = data.draw(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1))
    assert constant(node(oid, value.to_bytes(8, "little", signed=True), bits // 8), {}) == Fixed(oid, value)


@given(st.uuids(), st.booleans())
def test_uuids_and_booleans(value: uuid.UUID, truth: bool) -> None:
    assert constant(node(UUID, value.bytes), {}) == Fixed(UUID, str(value))
    assert constant(node(BOOL, bytes([truth, *[0] * 7]), 1), {}) == Fixed(BOOL, truth)


def test_names_labels_and_null() -> None:
    assert constant(node(NAME, b"abc".ljust(64, b"\0")), {}) == Fixed(NAME, "abc")
    assert constant(node(65000, (70000).to_bytes(8, "little"), 4), LABELS) == Fixed(65000, "ok")
    null = Node("CONST", {"consttype": "25", "constisnull": "true", "constvalue": None})
    assert constant(null, {}) == Fixed(TEXT, None)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6)))
def test_lists_of_texts(texts: list[str]) -> None:
    data = array(TEXT, [varlena(text.encode()) for text in texts], 4)
    assert list_constant(node(1009, data)) == tuple(Fixed(TEXT, text) for text in texts)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_lists_of_integers(numbers: list[int]) -> None:
    data = array(INT4, [number.to_bytes(4, "little", signed=True) for number in numbers], 4)
    assert list_constant(node(1007, data)) == tuple(Fixed(INT4, number) for number in numbers)


@pytest.mark.parametrize(
    "strange",
    [
        node(1700, varlena(b"\1\2")),
        node(TEXT, b"\x05a"),
        node(TEXT, varlena(b"\xff")),
        node(TEXT, varlena(b"abc")[:-1]),
        node(65000, (70001).to_bytes(8, "little"), 4),
        node(UUID, b"short"),
        node(BOOL, b"\0" * 7 + b"\1", 1),
        Node("CONST", {"consttype": "25", "constisnull": "false", "constvalue": None}),
        Node("VAR", {}),
    ],
)
def test_strange_constants(strange: Node) -> None:
    with pytest.raises(Unreadable):
        constant(strange, LABELS)


@given(st.binary(max_size=40))
def test_no_list_breaks_it(data: bytes) -> None:
    for body in (data, varlena(data)):
        try:
            list_constant(node(1009, body))
        except Unreadable:
            continue
