"""Rows of a cursor that must have one, and texts that a statement can carry.

No statement lives here; a missing row is our own mistake, never the database's.
"""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class, under a name that tells it from values

from walstream.errors import Invariant


def only(cursor: Cursor) -> tuple[Any, ...]:
    """The next row. Raises Invariant where there is none."""
    row = cursor.fetchone()
    if row is None:
        raise Invariant("a statement that always returns a row returned none")
    return row


def scalar(cursor: Cursor) -> Any:
    """The first column of the next row. Raises Invariant where there is none."""
    return only(cursor)[0]


def is_text(text: str) -> bool:
    """Whether PostgreSQL can have the text: no character U+0000, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
