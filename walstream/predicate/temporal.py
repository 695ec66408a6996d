"""Dates and times as tuples and numbers that order as PostgreSQL orders them (PostgreSQL 17, 8.5).

They are read from ISO output; years have any number of digits, BC years and infinity included. No literal syntax here.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

Moment: TypeAlias = tuple[float, ...]

_FOREVER: Final[Moment] = (float("inf"),)
_NEVER: Final[Moment] = (float("-inf"),)

_DATE: Final = rb"(\d{4,})-(\d\d)-(\d\d)"
_TIME: Final = rb"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?"
_OFFSET: Final = rb"([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?"

_date = re.compile(rb'"' + _DATE + rb'( BC)?"').fullmatch
_timestamp = re.compile(rb'"' + _DATE + rb"[ T]" + _TIME + rb'( BC)?"').fullmatch
_timestamptz = re.compile(rb'"' + _DATE + rb"[ T]" + _TIME + _OFFSET + rb'( BC)?"').fullmatch
_time = re.compile(rb'"' + _TIME + rb'"').fullmatch
_timetz = re.compile(rb'"' + _TIME + _OFFSET + rb'"').fullmatch

_DAYS_BEFORE_MONTH: Final = (0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
_DAY: Final = 86_400_000_000


def _infinite(cell: bytes) -> Moment:
    if cell == b'"infinity"':
        return _FOREVER
    if cell == b'"-infinity"':
        return _NEVER
    raise ValueError("not a date or time")


def _day(year: bytes, month: bytes, day: bytes, era: bytes | None) -> int:
    """Days since 0001-01-01 of the proleptic Gregorian calendar; the year before AD 1 is 1 BC."""
    y, m = int(year), int(month)
    if era:
        y = 1 - y
    leap = m > 2 and y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    before = y - 1
    return before * 365 + before // 4 - before // 100 + before // 400 + _DAYS_BEFORE_MONTH[m] + leap + int(day)


def _clock(hour: bytes, minute: bytes, second: bytes, fraction: bytes | None) -> int:
    """Microseconds since midnight."""
    micro = int(fraction.ljust(6, b"0")) if fraction else 0
    return ((int(hour) * 60 + int(minute)) * 60 + int(second)) * 1_000_000 + micro


def _offset(sign: bytes, hours: bytes, minutes: bytes | None, seconds: bytes | None) -> int:
    """Seconds east of Greenwich."""
    total = (int(hours) * 60 + int(minutes or 0)) * 60 + int(seconds or 0)
    return -total if sign == b"-" else total


def date(cell: bytes) -> Moment:
    """A date cell. Raises ValueError."""
    match = _date(cell)
    return _infinite(cell) if match is None else (_day(*match.groups()),)


def timestamp(cell: bytes) -> Moment:
    """A timestamp cell. Raises ValueError."""
    match = _timestamp(cell)
    if match is None:
        return _infinite(cell)
    year, month, day, hour, minute, second, fraction, era = match.groups()
    return (_day(year, month, day, era) * _DAY + _clock(hour, minute, second, fraction),)


def timestamptz(cell: bytes) -> Moment:
    """A timestamptz cell, at whatever offset it is printed. Raises ValueError."""
    match = _timestamptz(cell)
    if match is None:
        return _infinite(cell)
    year, month, day, hour, minute, second, fraction, *offset, era = match.groups()
    at = _day(year, month, day, era) * _DAY + _clock(hour, minute, second, fraction)
    return (at - _offset(*offset) * 1_000_000,)


def time(cell: bytes) -> int:
    """A time cell; 24:00:00 is later than any other. Raises ValueError."""
    match = _time(cell)
    if match is None:
        raise ValueError("not a time")
    return _clock(*match.groups())


def timetz(cell: bytes) -> tuple[int, int]:
    """A timetz cell: by the moment first, then by zone, the western one later. Raises ValueError."""
    match = _timetz(cell)
    if match is None:
        raise ValueError("not a time with a zone")
    hour, minute, second, fraction, *offset = match.groups()
    east = _offset(*offset)
    return _clock(hour, minute, second, fraction) - east * 1_000_000, -east
