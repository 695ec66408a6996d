"""Names of NOTIFY channels that are made of names of any length."""

from __future__ import annotations

import hashlib
from typing import Final

BYTES_MAX: Final = 63
"""PostgreSQL's NAMEDATALEN - 1: pg_notify refuses a longer name, and LISTEN would cut it silently."""

_DIGITS: Final = 16


def notify_channel(name: str) -> str:
    """``name``, or where it is longer than 63 bytes its first 46 bytes, ``#`` and 16 hex digits of its SHA-256.

    A character is not cut in two: the first part is then shorter.
    """
    encoded = name.encode()
    if len(encoded) <= BYTES_MAX:
        return name
    head = encoded[: BYTES_MAX - 1 - _DIGITS].decode(errors="ignore")
    return f"{head}#{hashlib.sha256(encoded).hexdigest()[:_DIGITS]}"
