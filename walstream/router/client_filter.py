"""The filters of clients: ``price=gt.10,name=not.in.(a,"b,c")``, with ``or(…)`` and ``and(…)`` as in PostgREST.

What an expression means, and whether it fits its table, is in ``predicate``. Supabase's words for one that cannot
be read are here, too: applications show them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec

from walstream.errors import FilterError
from walstream.predicate.expression import (
    COMPARISONS,
    And,
    Compare,
    Expression,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Like,
    Not,
    Or,
    Regex,
    check_text,
)

FILTER_CHARACTERS_MAX: Final = 65_536
VALUES_MAX: Final = 100
CONDITIONS_MAX: Final = 100
DEPTH_MAX: Final = 16

_GROUP: Final = re.compile(r"(not\.)?(and|or)=?\((.*)\)", re.DOTALL)
_DOTTED: Final = re.compile(r'("(?:[^"\\]|\\.)+"|[^.="()]+)\.(.*)', re.DOTALL)
_EQUATED: Final = re.compile(r'("(?:[^"\\]|\\.)+"|[^=]+)=(.*)', re.DOTALL)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_TRUTHS: Final[dict[str, bool | None]] = {"true": True, "false": False, "unknown": None}
_OPERATORS: Final = frozenset({*COMPARISONS, "in", "is", "like", "ilike", "match", "imatch", "isdistinct"})
_encode = msgspec.json.Encoder().encode


def parse_filter(text: str) -> Expression | None:
    """The condition that a client wrote; None for a blank text, which is no condition. Raises FilterError."""
    check_text(text, FILTER_CHARACTERS_MAX)
    if not text.strip():
        return None
    return _Parser().group(text, And, 0)


def _malformed(*parts: str) -> NoReturn:
    shown = ", ".join([_encode(part).decode("utf-8") for part in parts])
    _wrong(f"[{shown}]")


def _wrong(reason: str) -> NoReturn:
    raise FilterError(f"Error parsing `filter` params: {reason}")


def _split(text: str, *, balanced: bool) -> list[str]:
    """The pieces between commas outside quotes and parentheses. Quotes open only where a value begins.

    ``balanced``: a parenthesis that closes nothing is an error, not a character.
    """
    pieces: list[str] = []
    start = depth = at = 0
    before = ","
    while at < len(text):
        char = text[at]
        if char == '"' and before in ".(,=":
            match = _QUOTED.match(text, at)
            # Without its end a quote is a character like others, as it is for Supabase's server.
            if match is not None:
                at = match.end()
                before = '"'
                continue
        if char == "(":
            depth += 1
        elif char == ")":
            if balanced and depth == 0:
                _malformed(text)
            depth = max(0, depth - 1)
        elif char == "," and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
        if not char.isspace():
            before = char
        at += 1
    pieces.append(text[start:])
    return pieces


def _unquoted(text: str) -> str:
    match = _QUOTED.fullmatch(text)
    return text if match is None else _ESCAPED.sub(r"\1", match[1])


class _Parser:
    """Counts what one filter asks for."""

    def __init__(self) -> None:
        self._conditions = 0

    def group(self, text: str, kind: type[And | Or], depth: int) -> Expression:
        if depth > DEPTH_MAX:
            _wrong(f"groups are nested deeper than {DEPTH_MAX}")
        parts = tuple(self._part(piece.strip(), depth) for piece in _split(text, balanced=depth > 0))
        return parts[0] if len(parts) == 1 else kind(parts)

    def _part(self, text: str, depth: int) -> Expression:
        if not text:
            _wrong("filter must not contain empty segments (check for extra commas)")
        group = _GROUP.fullmatch(text)
        if group is not None:
            inner = self.group(group[3], And if group[2] == "and" else Or, depth + 1)
            return Not(inner) if group[1] else inner
        self._conditions += 1
        if self._conditions > CONDITIONS_MAX:
            _wrong(f"more than {CONDITIONS_MAX} conditions")
        dotted = _DOTTED.fullmatch(text) if depth else None
        if dotted is not None and dotted[2].removeprefix("not.").partition(".")[0] in _OPERATORS:
            return self._condition(_unquoted(dotted[1].strip()), dotted[2])
        equated = _EQUATED.fullmatch(text)
        column = "" if equated is None else _unquoted(equated[1].strip())
        if equated is None or not column:
            _malformed(text)
        return self._condition(column, equated[2].lstrip())

    def _condition(self, column: str, text: str) -> Expression:
        positive = text.removeprefix("not.")
        op, dot, value = positive.partition(".")
        if not dot:
            _malformed(positive)
        if op not in _OPERATORS:
            _malformed(op, value)
        condition = _list(column, value) if op == "in" else _single(column, op, value)
        return condition if positive == text else Not(condition)


def _single(column: str, op: str, raw: str) -> Expression:
    value = _unquoted(raw)
    match op:
        case "is":
            word = value.strip().lower()
            if word == "null":
                return IsNull(column)
            if word not in _TRUTHS:
                _malformed(op, raw)
            return IsTruth(column, _TRUTHS[word])
        case "like" | "ilike":
            return Like(column, value, op == "ilike")
        case "match" | "imatch":
            return Regex(column, value, op == "imatch")
        case "isdistinct":
            return IsDistinct(column, None if raw == "null" else value)
        case "eq" | "neq" | "lt" | "lte" | "gt" | "gte":
            return Compare(column, op, value)
        case _:
            _malformed(op, raw)


def _list(column: str, raw: str) -> Expression:
    """``(a, b, "c,d", null)``; blanks around a value do not count."""
    text = raw.strip()
    if len(text) < 2 or text[0] != "(" or text[-1] != ")":
        _wrong("`in` filter value must be wrapped by parentheses")
    inner = text[1:-1]
    pieces: Sequence[str] = [piece.strip() for piece in _split(inner, balanced=False)] if inner.strip() else ()
    if len(pieces) > VALUES_MAX:
        _wrong(f"too many values for `in` filter. Maximum {VALUES_MAX}")
    if not all(pieces):
        _malformed("in", raw)
    return InList(column, tuple(None if piece.lower() == "null" else _unquoted(piece) for piece in pieces))
