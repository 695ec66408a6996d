"""Readers for the text of values that hold other values: arrays, records and hstore.

They cut a text into its parts; what becomes of a part is decided by the value table in ``values``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

from walstream.errors import DecodeError

NULL: Final = b"null"

MAX_DIMENSIONS: Final = 6
"""PostgreSQL's own limit (MAXDIM)."""

_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED_OR_DOUBLED: Final = re.compile(rb'\\(.)|"(")', re.DOTALL)
_BOUNDS: Final = re.compile(rb"(?:\[[+-]?[0-9]+:[+-]?[0-9]+\]){1,6}=")
_FIELD: Final = re.compile(rb'"((?:[^"\\]|""|\\.)*+)"(?=[,)])|([^",()\\]*+)', re.DOTALL)
_PAIR: Final = re.compile(
    rb'"((?:[^"\\]|\\.)*+)"=>(?:"((?:[^"\\]|\\.)*+)"|NULL)(?:, (?=")|\Z)', re.DOTALL
)  # fmt: skip


@cache
def _items(delimiter: bytes) -> re.Pattern[bytes]:
    """One array element: a quoted text, or a bare one without the characters that PostgreSQL would quote."""
    return re.compile(rb'"((?:[^"\\]|\\.)*+)"|([^"\\{}%b]++)' % re.escape(delimiter), re.DOTALL)


def read_array(text: bytes, element: Callable[[bytes], bytes], delimiter: bytes) -> bytes:
    r"""The JSON array of ``{a,"b c",NULL,{…}}``, whatever bounds stand before it (PostgreSQL 17, 8.15.6).

    Raises DecodeError for a text that no array prints.
    """
    bounds = _BOUNDS.match(text)
    value, end = _level(text, bounds.end() if bounds else 0, element, delimiter, MAX_DIMENSIONS)
    if end != len(text):
        raise DecodeError("text after the end of an array", text)
    return value


def _level(
    text: bytes, at: int, element: Callable[[bytes], bytes], delimiter: bytes, depth: int
) -> tuple[bytes, int]:  # fmt: skip
    if text[at : at + 1] != b"{" or not depth:
        raise DecodeError("not an array", text)
    at += 1
    if text[at : at + 1] == b"}":
        return b"[]", at + 1
    match = _items(delimiter).match
    values: list[bytes] = []
    while True:
        if text[at : at + 1] == b"{":
            value, at = _level(text, at, element, delimiter, depth - 1)
        else:
            item = match(text, at)
            if item is None:
                raise DecodeError("an array with a gap", text)
            quoted, bare = item.groups()
            if bare is None:
                value = element(_ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted)
            else:
                value = NULL if bare == b"NULL" else element(bare)
            at = item.end()
        values.append(value)
        close = text[at : at + 1]
        at += 1
        if close == b"}":
            return b"[%b]" % b",".join(values), at
        if close != delimiter:
            raise DecodeError("an array without its end", text)


def read_record(text: bytes) -> list[bytes | None]:
    """The fields of ``(1,"b c",,"d""e")``, None for NULL (PostgreSQL 17, 8.16.6).

    Raises DecodeError for a text that no record prints.
    """
    if text[:1] != b"(":
        raise DecodeError("not a record", text)
    fields: list[bytes | None] = []
    at = 1
    while True:
        field = _FIELD.match(text, at)
        if field is None:
            raise DecodeError("a record with a gap", text)
        quoted, bare = field.groups()
        if quoted is not None:
            fields.append(_ESCAPED_OR_DOUBLED.sub(rb"\1\2", quoted) if b"\\" in quoted or b'"' in quoted else quoted)
        else:
            fields.append(bare or None)
        at = field.end()
        close = text[at : at + 1]
        at += 1
        if close == b")" and at == len(text):
            return fields
        if close != b",":
            raise DecodeError("a record without its end", text)


def read_hstore(text: bytes) -> list[tuple[bytes, bytes | None]] | None:
    """The pairs of ``"a"=>"1", "b"=>NULL``; None for a text that no hstore prints (PostgreSQL 17, F.17)."""
    pairs: list[tuple[bytes, bytes | None]] = []
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return None
        key, value = pair.groups()
        pairs.append((_ESCAPED.sub(rb"\1", key), None if value is None else _ESCAPED.sub(rb"\1", value)))
        at = pair.end()
    return pairs
