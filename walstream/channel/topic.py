"""Topics as clients write them, and the tables that two kinds of topic name.

What a join asks for beside its topic lives in ``join``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

PREFIX: Final = "realtime:"
TOPIC_BYTES_MAX: Final = 255  # a binary frame has one byte for its length

_NAME: Final = r'("(?:[^"]|"")+"|[^".]+)'
_TABLE: Final = re.compile(rf"(?:realtime:)?table:{_NAME}\.{_NAME}")


class TableName(NamedTuple):
    """A table, or with ``*`` as a whole part every one of a schema or of the database."""

    schema: str
    table: str


class Topic(msgspec.Struct, frozen=True):
    """What a client joins. ``text``: whole; ``subtopic``: without the prefix, the name that SQL and REST use.

    ``table``: the table of a table feed, for topics of that form.
    """

    text: str
    subtopic: str
    table: TableName | None = None

    @property
    def fits_binary_frames(self) -> bool:
        """Whether a binary frame can carry the topic."""
        return len(self.text.encode("utf-8")) <= TOPIC_BYTES_MAX


def parse_topic(text: str) -> Topic | None:
    """The topic that ``text`` names; None without the prefix ``realtime:``.

    A table feed is ``realtime:table:<schema>.<table>``, or the same with the prefix doubled, which official clients
    make of it. Names are taken as they are, case kept; one with a dot stands in double quotes, doubled inside.
    """
    if not text.startswith(PREFIX):
        return None
    subtopic = text.removeprefix(PREFIX)
    match = _TABLE.fullmatch(subtopic)
    return Topic(text, subtopic, TableName(_unquote(match[1]), _unquote(match[2])) if match else None)


def parse_legacy(subtopic: str) -> tuple[str, str | None, str | None]:
    """Schema, table and filter of a join without ``config``, whose topic is ``schema[:table[:column=op.value]]``."""
    schema, _, rest = subtopic.partition(":")
    table, _, row_filter = rest.partition(":")
    return schema, table or None, row_filter or None


def feed_topic(schema: str, table: str) -> str:
    """The topic of a table's feed: what ``parse_topic`` reads as this table."""
    return f"{PREFIX}table:{_quote(schema)}.{_quote(table)}"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if "." in name or '"' in name else name


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
