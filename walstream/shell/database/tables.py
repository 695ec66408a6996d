"""Tables as the catalogue knows them, found by the names that people write.

How names are written is in ``capture.names``; what is captured is in ``subscriptions``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.capture.names import TablePattern, is_system, parse_table_pattern, quote_identifier, quote_table
from walstream.errors import DatabaseRefused, FilterError, NotFound
from walstream.shell.database.rows import scalar

LOOKUP_ERRORS = (FilterError, NotFound, DatabaseRefused)
"""What ``resolve`` raises of its own."""

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}


class Table(NamedTuple):
    """One table. ``identity``: whether the WAL identifies the row of an UPDATE or DELETE, of all partitions too."""

    oid: int
    schema: str
    name: str
    kind: str  # pg_class.relkind
    persistence: str  # pg_class.relpersistence
    replica_identity: str  # pg_class.relreplident
    primary_key: Sequence[str]
    identity: bool
    row_security: bool
    root: str  # schema.table of the topmost partitioned table; "" for what is no partition

    @property
    def pattern(self) -> str:
        """The name as ``subscriptions.table_name`` has it."""
        return quote_table(self.schema, self.name)


class Target(NamedTuple):
    """What a subscription names: the pattern to store, and the tables that it means today."""

    pattern: str
    tables: tuple[Table, ...]
    is_wildcard: bool


_TABLES = """
select c.oid,
       n.nspname,
       c.relname,
       c.relkind,
       c.relpersistence,
       c.relreplident,
       coalesce(
           (select array_agg(a.attname::text order by k.position)
              from pg_catalog.pg_index i
             cross join lateral unnest(i.indkey::int2[]) with ordinality k (attnum, position)
              join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             where i.indrelid = c.oid and i.indisprimary),
           '{}'
       ),
       case
           when c.relkind = 'p' then
               exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary)
               and not exists (
                   select from pg_catalog.pg_partition_tree(c.oid) t
                     join pg_catalog.pg_class leaf on leaf.oid = t.relid
                    where t.isleaf and leaf.relkind = 'r' and not (
                        leaf.relreplident in ('d', 'f')
                        or leaf.relreplident = 'i' and exists (
                            select from pg_catalog.pg_index i where i.indrelid = leaf.oid and i.indisreplident
                        )
                    )
               )
           else
               c.relreplident = 'f'
               or c.relreplident = 'd' and exists (
                   select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary
               )
               or c.relreplident = 'i' and exists (
                   select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisreplident
               )
       end,
       c.relrowsecurity,
       case when c.relispartition then (
           select quote_ident(rn.nspname) || '.' || quote_ident(r.relname)
             from pg_catalog.pg_class r
             join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace
            where r.oid = pg_catalog.pg_partition_root(c.oid)
       ) else '' end
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
"""

_CAPTURABLE = """
 where c.relkind in ('r', 'p')
   and c.relpersistence = 'p'
   and not c.relispartition
   and n.nspname !~ '^pg_'
   and n.nspname not in ('information_schema', %(ours)s)
"""


def take_search_path(connection: Connection) -> tuple[str, ...]:
    """The schemas in which the user's unqualified names lie; from then on every name must be qualified."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.current_schemas(false)")
        path = scalar(cursor)
        cursor.execute("set search_path = ''")
    return tuple(path)


def resolve(connection: Connection, text: str, search_path: Sequence[str] = (), *, ours: str = "realtime") -> Target:
    """Find what a name means. ``ours``: walstream's schema, which nobody captures.

    Raises FilterError for what is no name, NotFound, and DatabaseRefused (reason ``not_capturable``) for what is there
    but has no changes of its own in the WAL.
    """
    pattern = parse_table_pattern(text)
    if pattern.table is None:
        return _resolve_wildcard(connection, pattern, ours)
    for schema, name in pattern.spellings:
        for candidate in search_path if schema is None else (schema,):
            found = _named(connection, candidate, name)
            if found:
                _check_capturable(found[0], ours)
                return Target(found[0].pattern, (found[0],), False)
    raise NotFound(f"there is no table {text.strip()}", repair=_near(connection, pattern, ours))


def matching(connection: Connection, pattern: str, *, ours: str = "realtime") -> tuple[Table, ...]:
    """The tables that a stored pattern means today; none for what names none. Raises psycopg2.Error.

    Of a name that was stored with capitals and without quotes both spellings are meant, as in the plan.
    """
    try:
        parsed = parse_table_pattern(pattern)
    except FilterError:
        return ()
    if parsed.is_unqualified:
        return ()
    if parsed.schema is None:
        return _load(connection, _CAPTURABLE, ours=ours)
    found: dict[int, Table] = {}
    for schema, name in parsed.spellings:
        tables = _named(connection, schema, name) if name is not None else _in_schema(connection, schema, ours)
        found |= {table.oid: table for table in tables}
    return tuple(found.values())


def leaves(connection: Connection, table: Table) -> tuple[Table, ...]:
    """The tables that hold a partitioned table's rows; the table itself if it is not partitioned."""
    if table.kind != "p":
        return (table,)
    where = (
        " where c.oid in (select t.relid from pg_catalog.pg_partition_tree(%(oid)s) t where t.isleaf and t.level > 0)"
    )
    return _load(connection, where, oid=table.oid)


def columns_of(connection: Connection, table: Table) -> tuple[str, ...]:
    """Names of the table's columns, by attribute number."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select a.attname from pg_catalog.pg_attribute a"
            " where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum",
            (table.oid,),
        )
        return tuple(row[0] for row in cursor.fetchall())


def _load(connection: Connection, where: str, **parameters: object) -> tuple[Table, ...]:
    with connection.cursor() as cursor:
        cursor.execute(_TABLES + where + " order by n.nspname, c.relname", parameters)
        rows = cursor.fetchall()
    return tuple(map(Table._make, rows))


def _named(connection: Connection, schema: str | None, name: str | None) -> tuple[Table, ...]:
    return _load(connection, " where n.nspname = %(schema)s and c.relname = %(name)s", schema=schema, name=name)


def _in_schema(connection: Connection, schema: str | None, ours: str) -> tuple[Table, ...]:
    return _load(connection, _CAPTURABLE + " and n.nspname = %(schema)s", ours=ours, schema=schema)


def _resolve_wildcard(connection: Connection, pattern: TablePattern, ours: str) -> Target:
    if pattern.schema is None:
        return Target(str(pattern), matching(connection, str(pattern), ours=ours), True)
    with connection.cursor() as cursor:
        for schema, _ in pattern.spellings:
            cursor.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,))
            if schema is not None and cursor.fetchone() is not None:
                if schema == ours or is_system(schema):
                    raise _uncapturable(f"the schema {schema} is the system's or walstream's own")
                return Target(f"{quote_identifier(schema)}.*", _in_schema(connection, schema, ours), True)
    raise NotFound(f"there is no schema {pattern.schema}")


def _check_capturable(table: Table, ours: str) -> None:
    if table.kind not in ("r", "p"):
        raise _uncapturable(
            f"{table.pattern} is {_KINDS.get(table.kind, 'no table')}", "subscribe the tables behind it"
        )
    if table.persistence == "u":
        repair = f"alter table {table.pattern} set logged"
        raise _uncapturable(f"{table.pattern} is unlogged: nothing of it is in the WAL", repair)
    if table.persistence == "t":
        raise _uncapturable(f"{table.pattern} is temporary: nothing of it is in the WAL")
    if table.schema == ours or is_system(table.schema):
        raise _uncapturable(f"the schema {table.schema} is the system's or walstream's own")
    if table.root:
        repair = f"subscribe {table.root}"
        raise _uncapturable(f"{table.pattern} is a partition: its changes are those of {table.root}", repair)


def _uncapturable(message: str, repair: str = "") -> DatabaseRefused:
    return DatabaseRefused(message, reason="not_capturable", repair=repair)


def _near(connection: Connection, pattern: TablePattern, ours: str) -> str:
    tables = {table.name: table.pattern for table in _load(connection, _CAPTURABLE, ours=ours)}
    found = difflib.get_close_matches(pattern.table or "", tables, n=1)
    return f"did you mean {tables[found[0]]}?" if found else ""
