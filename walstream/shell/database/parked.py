"""The table of what was left out of the WAL: written by the daemon, listed and cleared by the command line.

What is put there, and when, is ``wal/poison``'s business.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.lsn import Lsn
from walstream.shell.database.rows import only, scalar

CONTENT_BYTES_MAX: Final = 64 * 1024
"""Of each message, what is kept."""

ROWS_MAX: Final = 10_000
"""Beyond it the oldest rows go."""

COLUMNS: Final = (
    "id", "parked_at", "slot", "plugin", "lsn", "xid", "table_name", "reason", "size_bytes", "content",
)  # fmt: skip


class Parked(NamedTuple):
    """What was left out. ``lsn``: of the message, or of the commit of a transaction that was left out whole.

    ``content``: the message, b"" where PostgreSQL could not make one. ``table``: "" if unknown.
    """

    slot: str
    plugin: str
    lsn: Lsn
    xid: int
    table: str
    reason: str
    content: bytes = b""


_PARK = """
insert into {parked} (slot, plugin, lsn, xid, table_name, reason, size_bytes, digest, content)
values (%s, %s, %s, %s, nullif(%s, ''), %s, %s, %s, %s)
on conflict (slot, lsn, digest) do nothing
"""
_SWEEP = "delete from {parked} where id <= (select max(id) - %s from {parked})"
_LIST = """
select id, parked_at, slot, plugin, lsn::text, xid, table_name, reason, size_bytes,
       pg_catalog.left(pg_catalog.encode(content, 'escape'), 400) as content
  from {parked}
 order by id
"""
_COUNT = """
select count(*), coalesce(pg_catalog.string_agg(distinct table_name, ', ' order by table_name), '') from {parked}
"""


def is_left_out(connection: Connection, schema: str, slot: str, lsn: Lsn) -> bool:
    """Whether the transaction whose commit record begins there was left out whole. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        statement = sql.SQL("select exists (select from {} where slot = %s and lsn = %s and content is null)")
        cursor.execute(statement.format(sql.Identifier(schema, "parked")), (slot, str(lsn)))
        return bool(scalar(cursor))


def park(connection: Connection, schema: str, parked: Parked) -> None:
    """Write it down; the same one again, after a restart, changes nothing. Raises psycopg2.Error."""
    digest = hashlib.blake2b(parked.content, digest_size=16).hexdigest()
    shown = parked.content[:CONTENT_BYTES_MAX] or None
    with connection.cursor() as cursor:
        cursor.execute(
            _of(schema, _PARK),
            (
                parked.slot, parked.plugin, str(parked.lsn), parked.xid, parked.table, parked.reason,
                len(parked.content), digest, shown,
            ),
        )  # fmt: skip
        cursor.execute(_of(schema, _SWEEP), (ROWS_MAX,))


def list_parked(connection: Connection, schema: str) -> list[dict[str, Any]]:
    """All rows, oldest first, each with ``COLUMNS``; of the content the beginning as text. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_of(schema, _LIST))
        return [dict(zip(COLUMNS, row, strict=True)) for row in cursor.fetchall()]


def clear(connection: Connection, schema: str, number: int | None = None) -> int:
    """Delete one row, or all. Returns how many. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_of(schema, "delete from {parked} where %s is null or id = %s"), (number, number))
        return cursor.rowcount


def count(connection: Connection, schema: str) -> tuple[int, str]:
    """How many there are, and the tables that they are of. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_of(schema, _COUNT))
        number, names = only(cursor)
        return int(number), str(names)


def _of(schema: str, statement: str) -> sql.Composed:
    return sql.SQL(statement).format(parked=sql.Identifier(schema, "parked"))
