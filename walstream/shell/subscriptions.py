"""The rows of ``subscriptions``: which tables are captured, with which events, filter and columns.

Written here for the command line; the daemon reads them from the WAL. What a filter means is in ``capture``.
"""

from __future__ import annotations

import datetime as dt
import difflib
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - classes, under names that tell them from values
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from walstream.errors import FilterError, NotFound
from walstream.shell import filter_check, publications, tables
from walstream.shell.publications import Synced
from walstream.shell.rows import scalar
from walstream.shell.tables import Table, Target

EVENTS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
DEFAULT_EVENTS = EVENTS[:3]
LOCK_TIMEOUT = "5s"

Identity = Literal["full", "default"]


class Wish(NamedTuple):
    """What to capture of a table; it replaces what was captured before."""

    table: str
    events: tuple[str, ...] = DEFAULT_EVENTS
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
    warnings: tuple[str, ...]
    publications: Synced | None


class Subscription(NamedTuple):
    """One row, with what is known of its health. Times are UTC; ``lag_bytes`` is that of the slot."""

    id: str
    table_name: str
    events: list[str]
    filter: str | None
    columns: list[str] | None
    notify: bool
    created_at: dt.datetime
    updated_at: dt.datetime
    health: Literal["ok", "warning", "error", "unknown"]
    problem: str
    lag_bytes: int | None
    last_event_at: str | None


def parse_events(text: str) -> tuple[str, ...]:
    """``insert, Update`` or ``*`` (all but TRUNCATE) as PostgreSQL spells them, each once. Raises FilterError."""
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    if not names:
        raise FilterError("no events", repair=f"choose of {', '.join(EVENTS)}")
    chosen: set[str] = set()
    for name in names:
        if name in ("*", "ALL"):
            chosen |= set(DEFAULT_EVENTS)
        elif name in EVENTS:
            chosen.add(name)
        else:
            near = difflib.get_close_matches(name, EVENTS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose of {', '.join(EVENTS)}"
            raise FilterError(f"{name} is not an event", repair=hint)
    return tuple(event for event in EVENTS if event in chosen)


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
    with connection, connection.cursor() as cursor:
        target = tables.resolve(connection, wish.table, search_path, ours=schema)
        filter_columns = _check(connection, target, wish)
        if wish.replica_identity is not None:
            _set_replica_identity(connection, cursor, target, wish.replica_identity)
            target = target._replace(tables=tables.matching(connection, target.pattern, ours=schema))
        row_id, changed = _upsert(cursor, schema, target.pattern, wish)
        synced = publications.sync_publications(connection, schema) if with_publications else None
        warnings = _warnings(connection, target, wish, filter_columns)
    return Subscribed(row_id, target.pattern, target.tables, changed, warnings, synced)


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
        found = _find(connection, cursor, schema, name, search_path)
        if found is None:
            raise NotFound(f"there is no subscription {name}", repair="walstream subscriptions shows them")
        table = sql.Identifier(schema, "subscriptions")
        cursor.execute(sql.SQL("delete from {} where id = %s").format(table), (found[0],))
        if with_publications:
            publications.sync_publications(connection, schema)
    return found


def list_subscriptions(connection: Connection, schema: str, slot: str) -> list[Subscription]:
    """All rows, newest first, with their health. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "select s.id::text, s.table_name, s.events, s.filter, s.columns, s.notify, s.created_at, s.updated_at,"
                "       (select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), r.confirmed_flush_lsn)::bigint"
                "          from pg_catalog.pg_replication_slots r where r.slot_name = %(slot)s),"
                "       (select n.status -> 'subscriptions' -> s.id::text from {nodes} n"
                "         where n.status -> 'subscriptions' ? s.id::text"
                "         order by n.status -> 'subscriptions' -> s.id::text ->> 'last_event_at' desc nulls last limit 1)"
                "  from {subscriptions} s"
                " order by s.created_at desc, s.table_name"
            ).format(subscriptions=sql.Identifier(schema, "subscriptions"), nodes=sql.Identifier(schema, "nodes")),
            {"slot": slot},
        )
        rows = cursor.fetchall()
    listed = []
    for *row, lag, report in rows:
        reported = report or {}
        health, problem = health_of(connection, schema, table_name=row[1], events=row[2], filter_text=row[3], columns=row[4])
        if reported.get("error"):
            health, problem = "error", str(reported["error"])
        listed.append(Subscription(*row, health, problem, lag, reported.get("last_event_at")))
    return listed


def health_of(
    connection: Connection,
    schema: str,
    *,
    table_name: str,
    events: Sequence[str],
    filter_text: str | None,
    columns: Sequence[str] | None,
) -> tuple[Literal["ok", "warning", "error"], str]:
    """Whether a row can do what it says, and what prevents it. Raises psycopg2.Error."""
    try:
        target = tables.resolve(connection, table_name, ours=schema)
        wish = Wish(table_name, tuple(events), filter_text, tuple(columns) if columns else None)
        filter_columns = _check(connection, target, wish)
    except tables.LOOKUP_ERRORS as error:
        return "error", error.message
    warnings = _warnings(connection, target, wish, filter_columns)
    return ("warning", "; ".join(warnings)) if warnings else ("ok", "")


def _check(connection: Connection, target: Target, wish: Wish) -> frozenset[str]:
    """Columns that the filter reads. Raises FilterError where filter or columns do not fit every table."""
    read: frozenset[str] = frozenset()
    for table in target.tables:
        if wish.columns is not None:
            present = tables.columns_of(connection, table)
            for column in wish.columns:
                if column not in present:
                    near = difflib.get_close_matches(column, present, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(present)}"
                    raise FilterError(f"{table.pattern} has no column {column}", repair=hint)
        if wish.filter is not None:
            read |= filter_check.check(connection, wish.filter, table)
    if wish.filter is not None and not target.tables:
        filter_check.parse(wish.filter)
    return read


def _set_replica_identity(connection: Connection, cursor: Cursor, target: Target, identity: Identity) -> None:
    cursor.execute("select pg_catalog.set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
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
        list(wish.events),
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


def _find(
    connection: Connection, cursor: Cursor, schema: str, name: str, search_path: Sequence[str]
) -> tuple[str, str] | None:
    table = sql.Identifier(schema, "subscriptions")
    select = sql.SQL("select id::text, table_name from {} where {} = %s")
    try:
        cursor.execute(select.format(table, sql.Identifier("id")), (str(uuid.UUID(name.strip())),))
        row = cursor.fetchone()
        return None if row is None else (row[0], row[1])
    except ValueError:
        pass  # no id: a name
    # What is stored comes first: the table itself may be gone.
    names = [name.strip()]
    try:
        parts = tables.parse_name(name)
        prefixes = [""] if len(parts) == 2 else [f"{tables.quoted(schema_name)}." for schema_name in search_path]
        for prefix in prefixes:
            names += [prefix + ".".join(spelt) for spelt in _spellings(parts)]
    except FilterError:
        pass  # stored by SQL under a name that is none
    for candidate in names:
        cursor.execute(select.format(table, sql.Identifier("table_name")), (candidate,))
        row = cursor.fetchone()
        if row is not None:
            return row[0], row[1]
    return None


def _spellings(parts: Sequence[tables.NamePart]) -> list[tuple[str, ...]]:
    folded = tuple("*" if part.is_wildcard else tables.quoted(part.spellings[0]) for part in parts)
    verbatim = tuple("*" if part.is_wildcard else tables.quoted(part.text) for part in parts)
    return [folded, verbatim]


def _warnings(connection: Connection, target: Target, wish: Wish, read: frozenset[str]) -> tuple[str, ...]:
    """What of the wish PostgreSQL will not deliver."""
    told = []
    events = [event for event in ("UPDATE", "DELETE") if event in wish.events]
    blind = [table for table in target.tables if not table.identity and not _leaves_identify(connection, table)]
    if events and blind:
        told.append(
            f"{' and '.join(events)} of {', '.join(table.pattern for table in blind)} will not arrive:"
            " the table has no usable replica identity (add a primary key, or subscribe with --replica-identity full)"
        )
    unknown = sorted({column for table in target.tables for column in read - _in_old_row(connection, table)})
    if "DELETE" in wish.events and unknown and not blind:
        told.append(
            f"DELETE will not match the filter: the WAL of a deleted row has no {', '.join(unknown)}"
            " (subscribe with --replica-identity full)"
        )
    return tuple(told)


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
