"""Arguments of commands as people write them: JSON from the line, a file or a pipe, points in time, names, bounds.

Everything that is wrong is an InputError which names the argument; nothing here knows a command.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from walstream.errors import InputError

NAME_BYTES_MAX: Final = 255
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]*)?")
_SECONDS_BELOW: Final = 1e11  # the year 5138; in milliseconds, 1973
_MILLISECONDS_BELOW: Final = 1e14


class Instant(NamedTuple):
    """A point in time, in UTC. ``notice``: how it was read where the writer may have meant something else, or ""."""

    time: dt.datetime
    notice: str = ""


def parse_instant(name: str, text: str) -> Instant:
    """UNIX seconds, also with a fraction; milliseconds by their size; or ISO 8601, in UTC where it has no zone."""
    wanted = f"{name}: {text!r} is no point in time"
    repair = "UNIX seconds such as 1643723400, or ISO 8601 such as 2026-01-30T10:00:00Z"
    try:
        if _NUMBER.fullmatch(text):
            number = float(text)
            if number < _SECONDS_BELOW:
                return Instant(dt.datetime.fromtimestamp(number, dt.UTC))
            if number < _MILLISECONDS_BELOW:
                time = dt.datetime.fromtimestamp(number / 1000, dt.UTC)
                return Instant(time, f"{text} is read as milliseconds: {time.isoformat()}")
            raise InputError(wanted, repair=repair)
        if not text.isascii():
            raise InputError(wanted, repair=repair)
        time = dt.datetime.fromisoformat(text)
        if time.tzinfo is None:
            return Instant(time.replace(tzinfo=dt.UTC))
        return Instant(time.astimezone(dt.UTC))
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(wanted, repair=repair) from error


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
