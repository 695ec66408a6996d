"""The rows of ``subscriptions`` as the command line writes them: tables, events, filter and columns to capture.

The daemon reads them from the WAL. How they fare is in ``subscription_health``, what a filter means in ``capture``.
"""

from __future__ import annotations

import contextlib
import difflib
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - classes, under names that tell them from values
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from walstream.capture import ROW_EVENTS, TablePattern, parse_row_filter, parse_table_pattern, quote_identifier
from walstream.errors import FilterError, NotFound
from walstream.model import Operation
from walstream.shell.commands import filter_check
from walstream.shell.database import publications, tables
from walstream.shell.database.publications import Synced
from walstream.shell.database.reports import Finding
from walstream.shell.database.rows import scalar
from walstream.shell.database.tables import Table, Target

LOCK_TIMEOUT = "5s"

Identity = Literal["full", "default"]


class Wish(NamedTuple):
    """What to capture of a table; it replaces what was captured before."""

    table: str
    events: frozenset[Operation] = ROW_EVENTS
    filter: str | None = None
    columns: tuple[str, ...] | None = None
    notify: bool = False
    replica_identity: Identity | None = None  # None: leave it as it is


class Subscribed(NamedTuple):
    """The outcome. ``warnings``: what will not be captured although it was asked for, and why."""

    id: str
    pattern: str
    tables: tuple[Table, ...]
    changed: bool
    warnings: tuple[Finding, ...]
    publications: Synced | None


def parse_columns(text: str) -> tuple[str, ...]:
    """``a, "B c"``: names as the catalogue spells them, quotes optional, each once. Raises FilterError."""
    names: dict[str, None] = {}
    for part in text.split(","):
        name = part.strip()
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1].replace('""', '"')
        if not name:
            raise FilterError(f"columns: not a list of names: {text!r}")
        names[name] = None
    return tuple(names)


def subscribe(
    connection: Connection, schema: str, wish: Wish, *, search_path: Sequence[str] = (), with_publications: bool = True
) -> Subscribed:
    """Make or replace the row of a table, in one transaction with REPLICA IDENTITY and the publications.

    ``connection`` is in autocommit, with an empty search_path. Raises NotFound, FilterError, DatabaseRefused, and
    psycopg2.Error; then nothing has changed.
    """
    target = tables.resolve(connection, wish.table, search_path, ours=schema)
    filter_columns = check(connection, target, wish)  # before the transaction, which a refused literal would end
    with connection, connection.cursor() as cursor:
        cursor.execute("select pg_catalog.set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        if wish.replica_identity is not None:
            _set_replica_identity(connection, cursor, target, wish.replica_identity)
            target = target._replace(tables=tables.matching(connection, target.pattern, ours=schema))
        row_id, changed = _upsert(cursor, schema, target.pattern, wish)
        synced = publications.sync_publications(connection, schema) if with_publications else None
        warned = warnings(connection, target, wish, filter_columns)
    return Subscribed(row_id, target.pattern, target.tables, changed, warned, synced)


def unsubscribe(
    connection: Connection,
    schema: str,
    name: str,
    *,
    search_path: Sequence[str] = (),
    with_publications: bool = True,
) -> tuple[str, str]:
    """Delete a row by id, stored name or table; returns its id and name. Raises NotFound, psycopg2.Error."""
    with connection, connection.cursor() as cursor:
        found = find(cursor, schema, name, search_path)
        if found is None:
            raise NotFound(f"there is no subscription {name}", repair="walstream subscriptions shows them")
        table = sql.Identifier(schema, "subscriptions")
        cursor.execute(sql.SQL("delete from {} where id = %s").format(table), (found[0],))
        if with_publications:
            publications.sync_publications(connection, schema)
    return found


def find(cursor: Cursor, schema: str, name: str, search_path: Sequence[str] = ()) -> tuple[str, str] | None:
    """Id and stored name of a row, by id, stored name or another spelling of it; the table itself may be gone."""
    table = sql.Identifier(schema, "subscriptions")
    select = sql.SQL("select id::text, table_name from {} where {} = %s")
    with contextlib.suppress(ValueError):
        cursor.execute(select.format(table, sql.Identifier("id")), (str(uuid.UUID(name.strip())),))
        row = cursor.fetchone()
        if row is not None:
            return row[0], row[1]
    for candidate in _spellings(name.strip(), search_path):
        cursor.execute(select.format(table, sql.Identifier("table_name")), (candidate,))
        row = cursor.fetchone()
        if row is not None:
            return row[0], row[1]
    return None


def _spellings(name: str, search_path: Sequence[str]) -> list[str]:
    """Stored names that may be meant, the likelier first."""
    names = [name]
    with contextlib.suppress(FilterError):  # stored by SQL under a name that is none
        for schema, table in parse_table_pattern(name).spellings:
            if schema is None and table is not None:
                names += [str(TablePattern(candidate, table)) for candidate in search_path]
                names.append(quote_identifier(table))
            else:
                names.append(str(TablePattern(schema, table)))
    return names


def check(connection: Connection, target: Target, wish: Wish) -> frozenset[str]:
    """Columns that the filter reads. Raises FilterError where filter or columns do not fit every table."""
    read: frozenset[str] = frozenset()
    if wish.filter is not None:
        parse_row_filter(wish.filter)
    for table in target.tables:
        if wish.columns is not None:
            present = tables.columns_of(connection, table)
            for column in wish.columns:
                if column not in present:
                    near = difflib.get_close_matches(column, present, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(present)}"
                    raise FilterError(f"{table.pattern} has no column {column}", repair=hint)
        if wish.filter is not None:
            read |= filter_check.check(connection, wish.filter, table.schema, table.name)
    return read


def _set_replica_identity(connection: Connection, cursor: Cursor, target: Target, identity: Identity) -> None:
    alter = sql.SQL("alter table {} replica identity {}")
    for table in target.tables:
        # A partitioned table's own identity means nothing: its rows are in the partitions.
        for leaf in tables.leaves(connection, table):
            if leaf.replica_identity != identity[0]:
                cursor.execute(alter.format(sql.Identifier(leaf.schema, leaf.name), sql.SQL(identity)))


def _upsert(cursor: Cursor, schema: str, pattern: str, wish: Wish) -> tuple[str, bool]:
    table = sql.Identifier(schema, "subscriptions")
    values = (
        pattern,
        [event.value for event in Operation if event in wish.events],
        wish.filter,
        None if wish.columns is None else list(wish.columns),
        wish.notify,
    )
    # A row that stays the same is not written: every write is a change of plan for whoever resumes.
    cursor.execute(
        sql.SQL(
            "insert into {table} as s (table_name, events, filter, columns, notify) values (%s, %s::text[], %s, %s, %s)"
            " on conflict (table_name) do update"
            "   set events = excluded.events, filter = excluded.filter,"
            "       columns = excluded.columns, notify = excluded.notify"
            " where (s.events, s.filter, s.columns, s.notify)"
            "       is distinct from (excluded.events, excluded.filter, excluded.columns, excluded.notify)"
            " returning s.id::text"
        ).format(table=table),
        values,
    )
    row = cursor.fetchone()
    if row is not None:
        return str(row[0]), True
    cursor.execute(sql.SQL("select id::text from {} where table_name = %s").format(table), (pattern,))
    return str(scalar(cursor)), False


def warnings(connection: Connection, target: Target, wish: Wish, read: frozenset[str]) -> tuple[Finding, ...]:
    """What of the wish PostgreSQL will not deliver. ``read``: columns of the filter."""
    told = []
    events = [event.value for event in (Operation.UPDATE, Operation.DELETE) if event in wish.events]
    for table in target.tables:
        if events and not table.identity and not _leaves_identify(connection, table):
            cause = f"{' and '.join(events)} of {table.pattern} will not arrive: it has no usable replica identity"
            told.append(Finding("replica_identity", "warning", table.pattern, cause, _identify(connection, table)))
            continue
        unknown = sorted(read - _in_old_row(connection, table)) if read else []
        if Operation.DELETE in wish.events and unknown:
            cause = (
                f"DELETE of {table.pattern} will not match the filter:"
                f" the WAL of a deleted row has no {', '.join(unknown)}"
            )
            repair = "; ".join(_full(leaf) for leaf in tables.leaves(connection, table))
            told.append(Finding("filter_on_delete", "warning", table.pattern, cause, repair))
    return tuple(told)


def _identify(connection: Connection, table: Table) -> str:
    blind = [leaf for leaf in tables.leaves(connection, table) if not leaf.identity]
    return "; ".join([*map(_full, blind or [table]), "or add a primary key"])


def _full(table: Table) -> str:
    return f"alter table {table.pattern} replica identity full"


def _leaves_identify(connection: Connection, table: Table) -> bool:
    if table.kind != "p":
        return False
    leaves = tables.leaves(connection, table)
    return bool(leaves) and all(leaf.identity for leaf in leaves)


def _in_old_row(connection: Connection, table: Table) -> frozenset[str]:
    """Columns that the WAL has of a deleted row."""
    found = [_identity_columns(connection, leaf) for leaf in tables.leaves(connection, table)]
    return frozenset.intersection(*found) if found else frozenset(table.primary_key)


def _identity_columns(connection: Connection, table: Table) -> frozenset[str]:
    if table.replica_identity == "f":
        return frozenset(tables.columns_of(connection, table))
    if table.replica_identity == "d":
        return frozenset(table.primary_key)
    with connection.cursor() as cursor:
        cursor.execute(
            "select a.attname from pg_catalog.pg_index i"
            "  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey::int2[])"
            " where i.indrelid = %s and i.indisreplident and %s = 'i'",
            (table.oid, table.replica_identity),
        )
        return frozenset(row[0] for row in cursor.fetchall())
