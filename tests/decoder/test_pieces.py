"""What is done piece by piece says the same as what is done in one go, wherever the pieces happen to be cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from walstream.decoder import pieces
from walstream.decoder.pieces import brackets, is_utf8, quote, repaired, unquote

STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
texts = st.text(st.sampled_from('a"\\\n\x01é€😀[]{}') | st.characters(exclude_categories=["Cs"]), max_size=80)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(params=[16, 17, 23], autouse=True, scope="module")
def small_pieces(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", request.param)
        yield


@given(texts.map(str.encode) | st.binary(max_size=80))
@example(b"x" * 15 + "€".encode())
@example(b"x" * 16 + b"\xe2")
def test_a_text_is_checked_repaired_and_quoted(text: bytes) -> None:
    whole = text.decode("utf-8", "replace")
    assert is_utf8(text) == (whole.encode() == text)
    assert repaired(text) == whole.encode()
    assert json.loads(quote(text)) == whole


@given(texts)
@example("\\" * 40)
@example('"' * 40)
@example("x" * 14 + "\x01" * 9)
@example("x" * 15 + "é" * 9)
def test_a_string_is_unquoted(text: str) -> None:
    for value in (json.dumps(text, ensure_ascii=False), json.dumps(text)):
        assert unquote(value.encode()) == text.encode()
    as_servers_write = json.dumps(text, ensure_ascii=False).encode()
    assert b"".join(pieces._unquoted(as_servers_write)) == text.encode(), "without looking at all of it at once"


@given(st.binary(max_size=60) | st.text('"\\au0d8', max_size=60).map(lambda text: f'"{text}"'.encode()))
@example(b'"' + b"x" * 30 + b'"x"')
@example(b'"' + b"x" * 30 + b'\\"')
@example(b'"' + b"x" * 10 + rb"\ud83d\ude00" * 3 + b'"')
def test_what_is_no_string_stays_none(value: bytes) -> None:
    try:
        expected = msgspec.json.decode(value, type=str).encode()
    except ValueError:
        with pytest.raises(ValueError):
            unquote(value)
    else:
        assert unquote(value) == expected


@given(values)
@example(["x" * number + '"[' for number in range(40)])
def test_brackets_are_those_outside_strings(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    bare = STRING.sub(b"", text).translate(bytes.maketrans(b"{}", b"[]"))
    assert brackets(text) == bytes(byte for byte in bare if byte in b"[]")
