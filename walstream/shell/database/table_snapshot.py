"""A table's rows as of one moment, as a viewer sees them. Blocking SQL.

PostgreSQL itself applies row-level security and rights to columns. Which rows and columns of those reach a client, and
in what pages, is ``shell.clients.snapshots``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from walstream.errors import DatabaseRefused
from walstream.model import RelationInfo
from walstream.policy import Viewer
from walstream.policy.claims import ROLE, session_settings
from walstream.shell.database.access import Rights, load_rights
from walstream.shell.database.catalog import load_relations, name_arrays
from walstream.shell.database.judgement import can_look
from walstream.shell.database.plan_source import LoadedPlan

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

LOCK_SECONDS: Final = 5.0
"""For the lock that reading a table takes: who waits for it holds up nobody but itself."""

GRACE_SECONDS: Final = 5.0
"""After its time a transaction of ours that nobody ends is ended by the server."""

_DENIED: Final = "42501"
_UNDEFINED: Final = ("42P01", "3F000")

# PostgreSQL 17, 51.11 pg_class, 51.7 pg_attribute. Values of virtual generated columns are nowhere in the WAL.
_TABLES = """
select n.nspname, c.relname, c.relkind = 'p',
       case when c.reltuples >= 0 then c.reltuples::int8 end,
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                and (a.attgenerated = 'v' or (a.attgenerated <> '' and %(stored)s)))
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p')
   and (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
"""

Table = tuple[str, str]


class Facts(NamedTuple):
    """One table. ``is_divided``: a partitioned one. ``estimate``: rows, by the planner's count, None for unknown.

    ``unseen``: generated columns that no change of the table has.
    """

    relation: RelationInfo
    is_divided: bool
    estimate: int | None
    unseen: frozenset[str]


class Moment(NamedTuple):
    """What is there at the moment of the transaction's snapshot. ``tables``: those that exist."""

    loaded: LoadedPlan
    rights: Rights
    tables: Mapping[Table, Facts]


def begin(
    connection: PgConnection,
    viewer: Viewer,
    tables: Collection[Table],
    load_plan: Callable[[PgConnection], LoadedPlan],
    *,
    seconds: float,
    stored: bool,
) -> Moment:
    """Begin the transaction in which all pages are read, and go on in it as the viewer.

    ``seconds``: how long it may take. ``stored``: whether changes lack stored generated columns, too. Raises
    psycopg2.Error, DatabaseRefused for claims that no session can have.
    """
    if not can_look(viewer):
        raise DatabaseRefused("nobody can look as this role with these claims")
    settings = session_settings(viewer)
    with connection.cursor() as cursor:
        # No statement before the locks takes the snapshot: what empties or rewrites a table is over, or waits for us.
        cursor.execute("begin isolation level repeatable read, read only")
        for name, value in (
            ("statement_timeout", seconds + GRACE_SECONDS),
            ("idle_in_transaction_session_timeout", seconds + GRACE_SECONDS),
            ("lock_timeout", min(LOCK_SECONDS, seconds)),
        ):
            cursor.execute(sql.SQL("set local {} = %s").format(sql.Identifier(name)), (f"{value * 1000:.0f}ms",))
        cursor.execute("set local jit = off; set local cursor_tuple_fraction = 1")
        cursor.execute(sql.SQL("set local role {}").format(sql.Identifier(viewer.role)))
        for table in tables:
            _lock(cursor, table)
        cursor.execute("reset role")
        loaded = load_plan(connection)
        relations = load_relations(connection, tables)
        cursor.execute(_TABLES, {**name_arrays(tables), "stored": stored})
        found = {
            (schema, name): Facts(info, is_divided, estimate, frozenset(unseen))
            for schema, name, is_divided, estimate, unseen in cursor.fetchall()
            if (info := relations.get((schema, name))) is not None
        }
        rights = load_rights(connection, [viewer.role], tables)
        calls = sql.SQL(", ").join([sql.SQL("pg_catalog.set_config(%s, %s, true)")] * len(settings))
        # The role comes last: nothing after it may need another's rights.
        ordered = sorted(settings.items(), key=lambda setting: setting[0] == ROLE)
        cursor.execute(sql.SQL("select ") + calls, [text for setting in ordered for text in setting])
    return Moment(loaded, rights, found)


def _lock(cursor: Any, table: Table) -> None:
    """Lock it as reading does. Who may read some columns only may not lock: reading them will do so, a little later."""
    cursor.execute("savepoint lock")
    try:
        cursor.execute(sql.SQL("lock table {} in access share mode").format(sql.Identifier(*table)))
    except psycopg2.Error as error:
        if error.pgcode not in (_DENIED, *_UNDEFINED):
            raise
        cursor.execute("rollback to savepoint lock")


class Reading:
    """A cursor over some columns of one table, in the transaction that ``begin`` began.

    Rows are texts as the types' output functions print them. Raises psycopg2.Error.
    """

    def __init__(self, connection: PgConnection, facts: Facts, columns: Sequence[tuple[str, int]]) -> None:
        """``columns``: names and type OIDs."""
        self._cursor = connection.cursor()
        oids = tuple({oid for _, oid in columns})
        if oids:  # values are left as the server sends them, whatever their types are
            raw = psycopg2.extensions.new_type(oids, "RAW", lambda value, cursor: value)
            psycopg2.extensions.register_type(raw, self._cursor)
        names = [sql.Identifier(name) for name, _ in columns]
        self._cursor.execute(
            sql.SQL("declare snapshot no scroll cursor for select {} from {}{}").format(
                sql.SQL(", ").join(names or [sql.SQL("true")]),  # a row without columns is none for psycopg2
                sql.SQL("" if facts.is_divided else "only "),
                sql.Identifier(facts.relation.schema, facts.relation.name),
            )
        )

    def fetch(self, count: int) -> list[tuple[str | None, ...]]:
        """The next rows; fewer than ``count`` at the end. Raises DatabaseRefused for bytes that are no text, too."""
        self._cursor.execute("fetch forward %s from snapshot", (count,))
        try:
            return self._cursor.fetchall()
        except UnicodeDecodeError as error:
            raise DatabaseRefused(f"a value is not Unicode text: {error.reason}") from error

    def close(self) -> None:
        """Make room for the next one."""
        self._cursor.execute("close snapshot")
        self._cursor.close()


def end(connection: PgConnection) -> None:
    """End the transaction and the connection. Never raises."""
    with contextlib.suppress(psycopg2.Error):
        connection.close()
