"""Arguments as people write them: points in time, counts, names, JSON."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import InputError
from walstream.shell.commands import messages
from walstream.shell.commands.inputs import check_name, parse_count, parse_instant, read_json

TEN = dt.datetime(2026, 1, 30, 10, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1769767200", 0), ("1769767200.", 0), ("1769767200.25", 0.25), ("1769767200250", 0.25),
        ("2026-01-30T10:00:00Z", 0), ("2026-01-30T10:00:00+00:00", 0), ("2026-01-30T12:00:00+02:00", 0),
        ("2026-01-30T05:30:00.5-04:30", 0.5), ("2026-01-30 10:00:00", 0), ("2026-01-30T10:00", 0),
        ("20260130T100000Z", 0), ("2026-01-30", -36000),
    ],
)  # fmt: skip
def test_points_in_time(text: str, seconds: float) -> None:
    assert parse_instant("SINCE", text).time == TEN + dt.timedelta(seconds=seconds)


def test_milliseconds_are_told_by_their_size_and_said() -> None:
    assert "milliseconds" in parse_instant("SINCE", "1769767200000").notice
    assert parse_instant("SINCE", "1769767200").notice == ""
    assert parse_instant("SINCE", "0").time == dt.datetime.fromtimestamp(0, dt.UTC)


@given(st.integers(100_000_000_000, 30_000_000_000_000))
def test_seconds_milliseconds_and_iso_are_the_same(milliseconds: int) -> None:
    time = dt.datetime.fromtimestamp(milliseconds // 1000, dt.UTC) + dt.timedelta(milliseconds=milliseconds % 1000)
    close = dt.timedelta(milliseconds=0.5)
    for text in (f"{milliseconds // 1000}.{milliseconds % 1000:03}", str(milliseconds), time.isoformat()):
        assert abs(parse_instant("SINCE", text).time - time) < close


@given(st.text())
def test_whatever_is_no_time_is_said_so(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_instant("SINCE", text).time.tzinfo is dt.UTC


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1e9", "inf", "nan", "1_000", "٣", "99999999999999999999", "0001-01-01T00:00:00+14:00", "10:00", "1 "],
)
def test_no_points_in_time(text: str) -> None:
    with pytest.raises(InputError):
        parse_instant("SINCE", text)


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


@given(st.datetimes(timezones=st.just(dt.UTC)), st.integers(0, 2**59))
def test_a_cursor_reads_back(time: dt.datetime, seq: int) -> None:
    cursor = messages.Cursor(time, seq)
    assert messages.parse_cursor(str(cursor)) == cursor


@given(st.text())
def test_no_cursor_is_said_so(text: str) -> None:
    with contextlib.suppress(InputError):
        messages.parse_cursor(text)
