"""Points in time as HTTP clients write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.since import Position, parse_since

NEW_YEAR = 1_767_225_600_000_000


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1767225600", NEW_YEAR),
        ("1767225600.25", NEW_YEAR + 250_000),
        ("1767225600.1234567", NEW_YEAR + 123_456),
        ("1767225600000", NEW_YEAR),
        ("1767225600123", NEW_YEAR + 123_000),
        ("0", 0),
        ("2026-01-01T00:00:00Z", NEW_YEAR),
        ("2026-01-01T00:00:00", NEW_YEAR),
        ("2026-01-01", NEW_YEAR),
        ("2026-01-01 00:00:00", NEW_YEAR),
        ("2026-01-01T02:00:00+02:00", NEW_YEAR),
        ("2026-01-01T02:00:00 02:00", NEW_YEAR),
        ("2025-12-31T16:00:00-08:00", NEW_YEAR),
        ("2026-01-01T00:00:00.000001Z", NEW_YEAR + 1),
        ("1901-01-01", 0),
        (" 0 ", 0),
    ],
)
def test_every_usual_form_is_read(text: str, micros: int) -> None:
    assert parse_since(text) == Position(micros)


@pytest.mark.parametrize(
    "text",
    [
        "", "-1", "1e9", "soon", "99999999999999999", "2026-13-01", "/", "1/", "/1", "1/x", "٣", "nan", "1.",
        "0001-01-01T00:00:00+14:00/x", "1/1111111111111111111", "9999-12-31T23:59:59-14:00",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_since(text)


@given(st.integers(0, 253_402_300_799_000_000), st.integers(0, 10**18 - 1))
def test_a_cursor_comes_back_as_it_went(micros: int, seq: int) -> None:
    assert parse_since(str(Position(micros, seq))) == Position(micros, seq)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis
def test_iso_times_are_exact(time: datetime) -> None:
    micros = parse_since(time.isoformat()).micros
    assert datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000) == time


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        position = parse_since(text)
    except ValueError:
        return
    assert position.micros >= 0
