"""Lsn: a position in PostgreSQL's write-ahead log.

Parsing and printing live here; what positions mean to subscribers lives in ``walstream.history``.
"""

from __future__ import annotations

import re
from typing import Self

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_MAX = (1 << 64) - 1


class Lsn(int):
    """Byte position in the WAL, 0 ≤ value < 2⁶⁴ (PostgreSQL 17, 8.20 pg_lsn Type)."""

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        """Raises ValueError for a value outside 64 bits."""
        if not 0 <= value <= _MAX:
            raise ValueError(f"not a 64-bit LSN: {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``XXXXXXXX/XXXXXXXX``. Raises ValueError: no signs, spaces or underscores."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"
