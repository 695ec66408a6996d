"""What a join has to know from PostgreSQL, in one trip: tables, rights, cast literals and the snapshot it starts from.

Statements only; what follows from the answers is decided in ``joins``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import psycopg2
from psycopg2 import sql

from walstream.decoder.values import from_text
from walstream.errors import DecodeError
from walstream.model import Catalog, CatalogMiss, Snapshot
from walstream.shell.database.catalog import is_name
from walstream.shell.database.rows import only

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

LITERALS_AT_ONCE: Final = 200
"""Literals of one statement; PostgreSQL takes 1664 columns."""

_REFUSALS: Final = ("0A", "22", "23", "38", "39", "42", "54", "P0")
"""Classes of SQLSTATE with which a type's input function or a domain's check says no (PostgreSQL 17, appendix A);
54 for a text nested too deep. Others are told of the connection or the server."""

Literal = tuple[int, str]
"""A type's OID and the text that a filter compares with."""

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

_TYPE_NAMES = """
select t.oid::int8, pg_catalog.format_type(t.oid, -1)
  from pg_catalog.pg_type t
 where t.oid = any(%(oids)s::oid[])
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
        xmin, xmax, running, flush, insert, started = only(cursor)
    return Snapshot(int(xmin), int(xmax), frozenset(map(int, running)), int(flush), int(insert), float(started))


def tables_of(connection: PgConnection, schema: str | None) -> set[tuple[str, str]]:
    """Every table that a wildcard over ``schema`` (None: all but the system's) could mean. Raises psycopg2.Error."""
    if schema is not None and not is_name(schema):
        return set()
    with connection.cursor() as cursor:
        cursor.execute(_TABLES_OF_SCHEMAS, {"schema": schema})
        return {(row[0], row[1]) for row in cursor.fetchall()}


def cast_literals(
    connection: PgConnection, literals: Iterable[Literal], catalog: Catalog
) -> Mapping[Literal, bytes | str]:
    """Each literal as PostgreSQL reads it: its JSON cell, or the text of PostgreSQL's refusal.

    The connection has to be in autocommit, for a refusal ends a transaction. The literal travels as a parameter; only
    the type's own name, as the server quotes it, becomes SQL text. Raises psycopg2.Error where the refusal was not for
    a literal's sake (a lost connection, a timeout).
    """
    answers: dict[Literal, bytes | str] = {}
    wanted = list(dict.fromkeys(literals))
    names = _type_names(connection, {oid for oid, _ in wanted})
    possible = []
    for literal in wanted:
        if literal[0] not in names or catalog.types.get(literal[0]) is None:
            answers[literal] = f"unknown type {literal[0]}"
        elif "\0" in literal[1]:
            answers[literal] = "a value cannot contain the character U+0000"
        elif not _is_utf8(literal[1]):
            answers[literal] = "a value has to be Unicode text"
        else:
            possible.append(literal)
    for start in range(0, len(possible), LITERALS_AT_ONCE):
        _cast(connection, possible[start : start + LITERALS_AT_ONCE], names, catalog, answers)
    return answers


def _type_names(connection: PgConnection, oids: Collection[int]) -> dict[int, str]:
    """SQL text that means the type in its widest form: without a type modifier ``character`` would be one letter."""
    if not oids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_TYPE_NAMES, {"oids": list(oids)})
        return dict(cursor.fetchall())


def _cast(
    connection: PgConnection,
    literals: Sequence[Literal],
    names: Mapping[int, str],
    catalog: Catalog,
    answers: dict[Literal, bytes | str],
) -> None:
    """Cast all in one statement; where it is refused, cast both halves, until the refused ones stand alone."""
    # format() prints with the type's output function, which is what output plugins do; casts to text differ for some.
    one = "pg_catalog.format('%%s', cast(%s as {}))"
    parts = [sql.SQL(one).format(sql.SQL(names[oid].replace("%", "%%"))) for oid, _ in literals]
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("select ") + sql.SQL(", ").join(parts), [text for _, text in literals])
            texts = only(cursor)
    except psycopg2.Error as error:
        if (error.pgcode or "")[:2] not in _REFUSALS:
            raise
        if len(literals) > 1:
            middle = len(literals) // 2
            _cast(connection, literals[:middle], names, catalog, answers)
            _cast(connection, literals[middle:], names, catalog, answers)
            return
        answers[literals[0]] = (error.diag.message_primary or str(error)).strip()
        return
    for literal, text in zip(literals, texts, strict=True):
        try:
            answers[literal] = from_text(catalog.types[literal[0]], catalog)(text.encode())
        except DecodeError as error:
            answers[literal] = error.message
        except CatalogMiss:
            answers[literal] = f"unknown type inside {names[literal[0]]}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
