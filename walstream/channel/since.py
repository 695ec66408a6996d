"""Points in a room's history as people and programs write them: a time in any usual form, or the cursor of a page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

_NUMBER: Final = re.compile(r"\d{1,17}(\.\d{1,9})?")
_SEQ: Final = re.compile(r"\d{1,18}")
_LOST_PLUS: Final = re.compile(r"(?<=\d) (?=\d\d(:?\d\d)?$)")
MILLISECONDS_FROM: Final = 100_000_000_000
"""Seconds reach that in the year 5138, milliseconds did in 1973."""

_MICROS_MAX: Final = 253_402_300_799_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Position(NamedTuple):
    """A place in a room's history: microseconds since the epoch, and ``seq``. What comes after it is asked for."""

    micros: int
    seq: int = 0

    @property
    def time(self) -> datetime:
        """The time alone, in UTC."""
        return _EPOCH + timedelta(microseconds=self.micros)

    def __str__(self) -> str:
        """The cursor: a time in UTC and a number."""
        return f"{self.time.replace(tzinfo=None).isoformat()}Z/{self.seq}"


def position_of(time: datetime, seq: int) -> Position:
    """The place of a message that was sent then and has that number."""
    passed = time - _EPOCH
    return Position((passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds, seq)


def parse_since(text: str) -> Position:
    """Where to begin. Raises ValueError.

    Seconds of the UNIX epoch, also with a fraction; milliseconds, which are told by their size; ISO 8601, in UTC where
    it names no zone; or a cursor. A ``+`` that a query string made a space of is mended.
    """
    text = text.strip()
    if not text.isascii():
        raise ValueError("not ASCII")
    time, slash, seq = text.rpartition("/")
    if slash:
        if _SEQ.fullmatch(seq) is None:
            raise ValueError("no number after the slash")
        return Position(_micros(time), int(seq))
    return Position(_micros(text))


def _micros(text: str) -> int:
    if _NUMBER.fullmatch(text):
        whole, _, fraction = text.partition(".")
        micros = int(whole) * 1_000_000 + int(fraction[:6].ljust(6, "0"))
        return _bounded(micros // 1000 if int(whole) >= MILLISECONDS_FROM else micros)
    time = datetime.fromisoformat(_LOST_PLUS.sub("+", text))
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    try:
        return _bounded(position_of(time, 0).micros)
    except OverflowError as error:
        raise ValueError("out of range") from error


def _bounded(micros: int) -> int:
    if micros > _MICROS_MAX:
        raise ValueError("out of range")
    return max(0, micros)
