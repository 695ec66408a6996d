"""Arrays, records and hstore come apart as PostgreSQL put them together."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.decoder.nested import read_array, read_hstore, read_record
from walstream.decoder.pieces import quote
from walstream.errors import DecodeError

texts = st.text(st.sampled_from('{}()",;\\ \n\tabNULnul=>é') | st.characters(exclude_categories=["Cs"]), max_size=12)


def array_out(value: object, delimiter: str) -> str:
    """As PostgreSQL's array_out prints it."""
    if isinstance(value, list):
        return "{" + delimiter.join(array_out(item, delimiter) for item in value) + "}"
    if value is None:
        return "NULL"
    text = str(value)
    if not text or text.upper() == "NULL" or re.search(rf'["\\{{}}{delimiter}\s]', text):
        return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return text


def record_out(fields: list[str | None]) -> str:
    """As PostgreSQL's record_out prints it."""

    def field(text: str | None) -> str:
        if text is None:
            return ""
        if not text or re.search(r'["\\(),\s]', text):
            return '"' + re.sub(r'(["\\])', r"\1\1", text) + '"'
        return text

    return "(" + ",".join(map(field, fields)) + ")"


def hstore_out(pairs: dict[str, str | None]) -> str:
    """As hstore_out prints it."""

    def quoted(text: str) -> str:
        return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'

    return ", ".join(f"{quoted(key)}=>{'NULL' if value is None else quoted(value)}" for key, value in pairs.items())


@given(st.lists(st.none() | texts), st.sampled_from(",;"))
def test_arrays(items: list[str | None], delimiter: str) -> None:
    text = array_out(items, delimiter).encode()
    assert json.loads(read_array(text, quote, delimiter.encode())) == items
    assert json.loads(read_array(b"[-1:7]=" + text, quote, delimiter.encode())) == items


@given(
    st.lists(
        st.lists(st.lists(st.none() | texts, min_size=2, max_size=2), min_size=1, max_size=3), min_size=1, max_size=3
    )
)
def test_arrays_of_arrays(items: list[list[list[str | None]]]) -> None:
    assert json.loads(read_array(array_out(items, ",").encode(), quote, b",")) == items


@given(st.lists(st.none() | texts, min_size=1))
def test_records(fields: list[str | None]) -> None:
    read = read_record(record_out(fields).encode())
    assert [None if field is None else field.decode() for field in read] == fields


@given(st.dictionaries(texts, st.none() | texts))
def test_hstore(pairs: dict[str, str | None]) -> None:
    read = read_hstore(hstore_out(pairs).encode())
    assert read is not None
    assert {key.decode(): None if value is None else value.decode() for key, value in read} == pairs


@given(st.binary(max_size=40) | st.text('{}()[]:=",;\\ aN', max_size=40).map(str.encode))
def test_hostile_texts(text: bytes) -> None:
    for read in (lambda: read_array(text, quote, b","), lambda: read_record(text)):
        try:
            read()
        except DecodeError:
            continue
    read_hstore(text)


@pytest.mark.parametrize(
    "text", [b"{" * 100_000, b'{"' + b"\\" * 100_001, b"{" + b'"",' * 50_000, b"(" + b'""' * 100_000]
)
def test_long_hostile_texts(text: bytes) -> None:
    with pytest.raises(DecodeError):
        read_array(text, quote, b",")
    with pytest.raises(DecodeError):
        read_record(text)
