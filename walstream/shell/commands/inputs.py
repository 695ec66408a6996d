"""Arguments of commands as people write them: JSON from the line, a file or a pipe, points in time, names, bounds.

Everything that is wrong is an InputError which names the argument; nothing here knows a command.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from walstream.channel.since import MILLISECONDS_FROM, Position, parse_since
from walstream.errors import InputError

NAME_BYTES_MAX: Final = 255
_NUMBER: Final = re.compile(r"[0-9.]+")


class Since(NamedTuple):
    """Where to begin. ``notice``: how it was read where the writer may have meant something else, or ""."""

    position: Position
    notice: str = ""


def read_since(name: str, text: str) -> Since:
    """A point in time in any form that ``channel.since`` knows, or a cursor."""
    try:
        position = parse_since(text)
    except ValueError as error:
        raise InputError(
            f"{name}: {text!r} is no point in time",
            repair="UNIX seconds such as 1643723400, ISO 8601 such as 2026-01-30T10:00:00Z, or a cursor",
        ) from error
    if _NUMBER.fullmatch(text) and float(text) >= MILLISECONDS_FROM:
        return Since(position, f"{text} is read as milliseconds: {str(position).partition('/')[0]}")
    return Since(position)


def parse_count(name: str, text: str, least: int, most: int) -> int:
    """A whole number within bounds, both included."""
    if re.fullmatch(r"[0-9]{1,18}", text) is None or not least <= int(text) <= most:
        raise InputError(f"{name}: {text!r}", repair=f"a whole number from {least} to {most}")
    return int(text)


def check_name(name: str, text: str) -> str:
    """A free name, such as a user's or an event's: something, and not too long for an index."""
    if not text:
        raise InputError(f"{name} is empty", repair=f"1 to {NAME_BYTES_MAX} bytes of text")
    size = len(text.encode())
    if size > NAME_BYTES_MAX:
        raise InputError(f"{name} has {size} bytes", repair=f"1 to {NAME_BYTES_MAX} bytes of text")
    return text


def read_json(name: str, text: str, limit: int, form: Literal["object", "any"] = "any") -> str:
    """The JSON that an argument gives: itself, with ``-`` what standard input has, with ``@file`` what a file has.

    ``limit``: bytes. The text comes back as it was written, numbers and all.
    """
    content = _content(name, text, limit)
    if len(content) > limit:
        raise InputError(
            f"{name} has more than {limit} bytes", repair="send less, or a reference to where it can be had"
        )
    try:
        value = msgspec.json.decode(content)
        plain = content.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{name} is no JSON: {error}", repair='quote it for the shell: \'{"text": "Hello"}\''
        ) from error
    if form == "object" and not isinstance(value, dict):
        raise InputError(f"{name} is no JSON object", repair='such as {"max_members": 10}')
    return plain


def _content(name: str, text: str, limit: int) -> bytes:
    """At most one byte more than ``limit``."""
    if text == "-":
        return sys.stdin.buffer.read(limit + 1)
    if not text.startswith("@"):
        return text.encode()
    path = Path(text[1:])
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{name}: cannot read {path}: {reason}", repair="@FILE takes the JSON from a file") from error
