"""LIKE and ILIKE without backtracking: a pattern cut at its % signs, each piece found at its first place.

PostgreSQL 17, 9.7.1 LIKE. Regular expressions are in ``regex``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from walstream.errors import FilterError
from walstream.predicate.letters import fold

Matcher = Callable[[str], bool]

PATTERN_CHARACTERS_MAX: Final = 1000

_STEPS_MAX: Final = 50_000_000
"""Texts on which a pattern with _ could take longer are not looked at: about a tenth of a second."""

_Piece = list[str | None]  # characters; None stands for any one


def matcher(pattern: str, *, insensitive: bool = False, ascii_case: bool = False) -> Matcher:
    """Whether a text matches. ``ascii_case``: only a to z have a case. Raises FilterError.

    A matcher raises ValueError for a text on which a pattern with _ would take too long.
    """
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise FilterError(f"LIKE pattern of more than {PATTERN_CHARACTERS_MAX} characters")
    pieces = _pieces(pattern)
    if insensitive:
        pieces = [[char and fold(char, ascii_case) for char in piece] for piece in pieces]
    match = _matcher(pieces)
    if not insensitive:
        return match
    return lambda text: match(fold(text, ascii_case))


def _pieces(pattern: str) -> list[_Piece]:
    pieces: list[_Piece] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "%":
            pieces.append([])
        elif char == "_":
            pieces[-1].append(None)
        elif char == "\\":
            at += 1
            if at == len(pattern):
                raise FilterError("LIKE pattern must not end with escape character")
            pieces[-1].append(pattern[at])
        else:
            pieces[-1].append(char)
        at += 1
    return pieces


def _matcher(pieces: list[_Piece]) -> Matcher:
    first, *middle = pieces
    if not middle:
        whole = _expression(first).fullmatch
        return lambda text: whole(text) is not None
    last = middle.pop()
    head, head_length = _expression(first).match, len(first)
    tail, tail_length = _expression(last).match, len(last)
    # The first place is never worse than a later one: what follows a % only needs room.
    searches = [(_expression(piece).search, len(piece)) for piece in middle if piece]
    longest = max((len(piece) for piece in middle if None in piece), default=0)

    def match(text: str) -> bool:
        if len(text) * longest > _STEPS_MAX:
            raise ValueError("too long for the pattern")
        end = len(text) - tail_length
        at = head_length
        if at > end or head(text) is None:
            return False
        for search, length in searches:
            found = search(text, at, end)
            if found is None:
                return False
            at = found.start() + length
        return tail(text, end) is not None

    return match


def _expression(piece: _Piece) -> re.Pattern[str]:
    """A pattern of fixed length: it has nothing to backtrack over."""
    return re.compile("".join("." if char is None else re.escape(char) for char in piece), re.DOTALL)
