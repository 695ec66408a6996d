"""What a join has to know from PostgreSQL, in one trip: tables, rights, cast literals and the snapshot it starts from.

Statements only; what follows from the answers is decided in ``joins``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from walstream.decoder.values import from_text
from walstream.model import Catalog, Column, Relation, Snapshot

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

Literal = tuple[int, str]
"""A type's OID and the text that a filter compares with."""

_COLUMNS = """
select n.nspname, c.relname, c.oid, a.attname, a.atttypid, t.typname
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  join pg_catalog.pg_type t on t.oid = a.atttypid
 where c.relkind in ('r', 'p')
   and (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
 order by c.oid, a.attnum
"""

_TABLES_OF_SCHEMAS = """
select n.nspname, c.relname
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p')
   and not c.relispartition
   and c.relpersistence = 'p'
   and n.nspname !~ '^pg_'
   and n.nspname <> 'information_schema'
   and (%(schema)s is null or n.nspname = %(schema)s)
"""

_SNAPSHOT = """
select pg_catalog.pg_snapshot_xmin(s.snapshot)::text,
       pg_catalog.pg_snapshot_xmax(s.snapshot)::text,
       array(select x::text from pg_catalog.pg_snapshot_xip(s.snapshot) x),
       (pg_catalog.pg_current_wal_flush_lsn() - '0/0')::text,
       (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::text,
       extract(epoch from pg_catalog.pg_postmaster_start_time())::float8
  from (select pg_catalog.pg_current_snapshot() as snapshot) s
"""


def load_snapshot(connection: PgConnection) -> Snapshot:
    """Where changes become live for whoever joins now. Raises psycopg2.Error.

    The positions are read after the snapshot was taken, so every transaction visible in it ends at or below them.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SNAPSHOT)
        row = cursor.fetchone()
    assert row is not None
    xmin, xmax, running, flush, insert, started = row
    return Snapshot(int(xmin), int(xmax), frozenset(map(int, running)), int(flush), int(insert), float(started))


def load_tables(
    connection: PgConnection, names: Collection[tuple[str, str]], catalog: Catalog
) -> dict[tuple[str, str], Relation]:
    """Definitions of the ordinary and partitioned tables among ``names``. Raises psycopg2.Error."""
    columns: dict[tuple[str, str], list[Column]] = {}
    oids: dict[tuple[str, str], int] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            _COLUMNS, {"schemas": [schema for schema, _ in names], "tables": [table for _, table in names]}
        )  # fmt: skip
        for schema, table, oid, name, type_oid, type_name in cursor.fetchall():
            columns.setdefault((schema, table), []).append(Column(name, type_oid, type_name))
            oids[schema, table] = oid
    found = {}
    for key, definition in columns.items():
        info = catalog.relations.get(key)
        primary_key = info.primary_key if info is not None else ()
        found[key] = Relation(key[0], key[1], tuple(definition), primary_key, oid=oids[key])
    return found


def tables_of(connection: PgConnection, schema: str | None) -> set[tuple[str, str]]:
    """Every table that a wildcard over ``schema`` (None: all but the system's) could mean. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES_OF_SCHEMAS, {"schema": schema})
        return {(row[0], row[1]) for row in cursor.fetchall()}


def cast_literals(
    connection: PgConnection, literals: Iterable[Literal], catalog: Catalog
) -> Mapping[Literal, bytes | str]:
    """Each literal as PostgreSQL reads it: its JSON cell, or the text of PostgreSQL's refusal.

    The literal travels as a parameter; only the type's own name, as the server quotes it, becomes SQL text.
    """
    answers: dict[Literal, bytes | str] = {}
    with connection.cursor() as cursor:
        for oid, text in literals:
            cursor.execute("select pg_catalog.format_type(%s, null)", (oid,))
            row = cursor.fetchone()
            info = catalog.types.get(oid)
            if row is None or info is None:
                answers[oid, text] = f"unknown type {oid}"
                continue
            statement = sql.SQL("select cast(%s as {})::text").format(sql.SQL(row[0]))
            try:
                cursor.execute(statement, (text,))
                value = cursor.fetchone()
            except (psycopg2.DataError, psycopg2.ProgrammingError) as error:
                answers[oid, text] = (error.diag.message_primary or str(error)).strip()
                continue
            assert value is not None
            answers[oid, text] = from_text(info, catalog)(value[0].encode())
    return answers
