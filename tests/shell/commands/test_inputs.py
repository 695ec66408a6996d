"""Arguments as people write them: points in time, counts, names, JSON."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.since import Position
from walstream.errors import InputError
from walstream.shell.commands.inputs import check_name, parse_count, read_json, read_since


def test_points_in_time_are_told_and_milliseconds_said() -> None:
    assert read_since("SINCE", "1769767200") == (Position(1_769_767_200_000_000), "")
    assert read_since("SINCE", "2026-01-30T12:00:00+02:00/7") == (Position(1_769_767_200_000_000, 7), "")
    position, notice = read_since("SINCE", "1769767200250")
    assert position == Position(1_769_767_200_250_000)
    assert notice == "1769767200250 is read as milliseconds: 2026-01-30T10:00:00.250000Z"


@given(st.text() | st.from_regex(r"[0-9.]{1,20}", fullmatch=True))
def test_whatever_is_no_time_is_said_so(text: str) -> None:
    with contextlib.suppress(InputError):
        assert read_since("SINCE", text).position.time.tzinfo is dt.UTC


@pytest.mark.parametrize(
    "text", ["", "-1", "1e9", "inf", "nan", "1_000", "٣", "99999999999999999999", "10:00", "1.2.3", "x/1", "1/x"]
)
def test_no_points_in_time(text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_since("SINCE", text)
    assert caught.value.repair


def test_counts_have_bounds() -> None:
    assert [parse_count("LIMIT", text, 1, 1000) for text in ("1", "0050", "1000")] == [1, 50, 1000]
    for text in ("0", "1001", "-1", "1.5", "", "x", "1 ", "٣", "9" * 400, "1; drop table x"):
        with pytest.raises(InputError, match="LIMIT"):
            parse_count("LIMIT", text, 1, 1000)


def test_names_are_free_and_bounded() -> None:
    for name in ("user.joined", "x" * 255, "é" * 127, "'; --", "🎉"):
        assert check_name("EVENT", name) == name
    for name in ("", "x" * 256, "é" * 128):
        with pytest.raises(InputError):
            check_name("EVENT", name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_json_comes_back_as_it_was_written(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    assert read_json("PAYLOAD", text, 10**6) == text


@given(st.text())
def test_anything_else_is_no_json(text: str) -> None:
    with contextlib.suppress(InputError):
        json.loads(read_json("PAYLOAD", " " + text, 10**6))


def test_json_is_bounded_and_of_its_form(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'{"a": 1}')
    assert read_json("METADATA", f"@{file}", 8, "object") == '{"a": 1}'
    for text, limit in ((f"@{file}", 7), ("[]", 9), ("@", 9), ("@\0", 9), (f"@{tmp_path}", 9), ("{", 9), ('"é"', 3)):
        with pytest.raises(InputError):
            read_json("METADATA", text, limit, "object" if limit != 3 else "any")
    file.write_bytes(b'"\xff"')
    with pytest.raises(InputError):
        read_json("PAYLOAD", f"@{file}", 9)
