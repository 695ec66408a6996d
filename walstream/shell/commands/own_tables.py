"""Statements over walstream's own tables, with every value a bound parameter, and channels as people name them.

What the statements are is told by the commands' modules beside this one.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.channel.slug import is_uuid
from walstream.errors import InputError, Invariant, NotFound

Row = dict[str, Any]

_NAMES: Final = (
    "channels", "channel_members", "messages", "presence", "connections", "nodes",
    "maintain_messages", "cleanup_stale_connections", "cleanup_stale_presence",
)  # fmt: skip
_SUGGESTED_FROM: Final = 2000


class Channel(NamedTuple):
    """A registered channel, as far as naming it goes."""

    id: str
    slug: str
    name: str
    type: str


class OwnTables:
    """A connection in autocommit and the schema's name. All methods raise psycopg2.Error."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self._names = {table: sql.Identifier(schema, table) for table in _NAMES}

    def rows(self, statement: str, values: Mapping[str, object] | None = None) -> list[Row]:
        """Rows of one statement: ``{messages}`` stands for the table or function, ``%(name)s`` for a value."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(**self._names), values or {})
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []

    def first(self, statement: str, values: Mapping[str, object] | None = None) -> Row | None:
        """The first row, or None."""
        return next(iter(self.rows(statement, values)), None)

    def only(self, statement: str, values: Mapping[str, object] | None = None) -> Row:
        """The row of a statement that always has one."""
        row = self.first(statement, values)
        if row is None:
            raise Invariant("a statement that always returns a row returned none")
        return row

    def count(self, statement: str, values: Mapping[str, object] | None = None) -> int:
        """How many rows a statement without result has changed."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(**self._names), values or {})
            return cursor.rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction for a block; it is undone where the block raises. No two inside each other."""
        with self.connection:
            yield

    def channel(self, text: str) -> Channel:
        """The channel with that id, else with that slug. Raises NotFound."""
        columns = "select id::text, slug, name, type from {channels}"
        row = self.first(columns + " where id = %(id)s::uuid", {"id": text}) if is_uuid(text) else None
        row = row or self.first(columns + " where slug = %(slug)s", {"slug": text})
        if row is None:
            raise NotFound(f"there is no channel {text}", repair=self._hint(text))
        return Channel(**row)

    def _hint(self, text: str) -> str:
        slugs = [
            row["slug"]
            for row in self.rows(
                "select slug from {channels} order by slug limit %(limit)s", {"limit": _SUGGESTED_FROM}
            )
        ]
        near = difflib.get_close_matches(text[:100], [slug[:100] for slug in slugs], n=1)
        if near:
            return f"did you mean {near[0]}?"
        return "walstream channel list shows all" if slugs else "walstream channel create makes one"


@contextlib.contextmanager
def judging(name: str) -> Iterator[None]:
    """Tell what PostgreSQL cannot take of the argument ``name``, such as a NUL in JSON, as an InputError."""
    try:
        yield
    except psycopg2.DataError as error:
        message = error.diag.message_primary or str(error)
        detail = f": {error.diag.message_detail}" if error.diag.message_detail else ""
        raise InputError(f"{name}: {message}{detail}", repair="PostgreSQL cannot store this value") from error
