"""Names of tables as people write them: identifiers with and without quotes, and patterns over tables.

Which tables exist is the caller's business, as is the search path.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from walstream.errors import FilterError

NAME_CHARACTERS_MAX: Final = 1000

KEYWORDS: Final = frozenset(
    {
        "all", "and", "any", "between", "case", "cast", "collate", "distinct", "escape", "exists", "false", "from",
        "ilike", "in", "is", "like", "not", "null", "or", "select", "similar", "some", "symmetric", "true", "unknown",
    }
)  # fmt: skip
"""Words that are no names in a filter."""

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_$]*", re.ASCII)
_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".\s][^".]*))\s*')
_SYSTEM_SCHEMAS: Final = frozenset({"information_schema", "pg_catalog"})


class TablePattern(msgspec.Struct, frozen=True):
    """A table, all tables of a schema, or all tables. ``schema``: None for any; ``table``: None for every one.

    A table without a schema is *unqualified*: somebody who knows the search path has to resolve it. ``written``: the
    spelling with capitals of a name that was written without quotes, "" if there is none: PostgreSQL folds such a name,
    and people mean either.
    """

    schema: str | None = None
    table: str | None = None
    written: tuple[str, str] = ("", "")

    @property
    def is_unqualified(self) -> bool:
        """Whether the schema is left to the search path."""
        return self.schema is None and self.table is not None

    @property
    def spellings(self) -> tuple[tuple[str | None, str | None], ...]:
        """(schema, table) that it may mean, the likelier first."""
        schemas = (self.schema, *filter(None, self.written[:1]))
        tables = (self.table, *filter(None, self.written[1:]))
        return tuple((schema, table) for schema in schemas for table in tables)

    def __str__(self) -> str:
        if self.table is None:
            return f"{'*' if self.schema is None else quote_identifier(self.schema)}.*"
        return quote_table(self.schema, self.table) if self.schema is not None else quote_identifier(self.table)


def parse_table_pattern(text: str) -> TablePattern:
    """``users``, ``public.users``, ``"a.b"."C"``, ``public.*``, ``*.*`` or ``*``. Raises FilterError."""
    parts: list[tuple[str, str]] = []
    at = 0
    while len(text) <= NAME_CHARACTERS_MAX and "\0" not in text:
        match = _PART.match(text, at)
        if match is None:
            break
        parts.append(_part(match))
        at = match.end()
        if at == len(text):
            return _pattern(text, parts)
        if text[at] != ".":
            break
        at += 1
    raise _no_table(text)


def _part(match: re.Match[str]) -> tuple[str, str]:
    """A name and how it was written, if that is another; ("", "*") for the wildcard."""
    if match[1] is not None:
        return match[1].replace('""', '"'), ""
    bare = match[2].strip()
    folded = "".join([char.lower() if char.isascii() else char for char in bare])
    return ("", "*") if bare == "*" else (folded, bare if bare != folded else "")


def _pattern(text: str, parts: list[tuple[str, str]]) -> TablePattern:
    match parts:
        case [("", "*")] | [("", "*"), ("", "*")]:
            return TablePattern()
        case [(table, written)] if table:
            return TablePattern(None, table, ("", written))
        case [(schema, written), ("", "*")] if schema:
            return TablePattern(schema, None, (written, ""))
        case [(schema, written_schema), (table, written)] if schema and table:
            return TablePattern(schema, table, (written_schema, written))
    raise _no_table(text)


def _no_table(text: str) -> FilterError:
    shown = text if len(text) < 200 else f"{text[:200]}…"
    return FilterError(
        f"not the name of a table: {shown!r}", repair='write schema.table, "Schema"."Table", schema.* or *.*'
    )


def quote_identifier(name: str) -> str:
    """As SQL would have it: in quotes unless it is plain."""
    if _PLAIN.fullmatch(name) and name not in KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def quote_table(schema: str, name: str) -> str:
    """The table's name as ``parse_table_pattern`` reads it."""
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


def is_system(schema: str) -> bool:
    """Whether a schema is PostgreSQL's own."""
    return schema in _SYSTEM_SCHEMAS or schema.startswith("pg_")
