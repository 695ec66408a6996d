"""Tables as the catalogue knows them, found by the names that people write.

What is captured of them is in ``subscriptions``; their columns' types are loaded by ``filter_check``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.errors import DatabaseRefused, FilterError, NotFound
from walstream.shell.rows import scalar

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".\s][^".]*)')
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
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


class NamePart(NamedTuple):
    """One identifier as written. ``quoted``: its case counts."""

    text: str
    quoted: bool

    @property
    def is_wildcard(self) -> bool:
        """An unquoted asterisk."""
        return self.text == "*" and not self.quoted

    @property
    def spellings(self) -> tuple[str, ...]:
        """Names that it may mean, the likelier first: PostgreSQL folds what is not quoted."""
        return (self.text,) if self.quoted else tuple(dict.fromkeys((self.text.lower(), self.text)))


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
        return f"{quoted(self.schema)}.{quoted(self.name)}"


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


def parse_name(text: str) -> tuple[NamePart, ...]:
    """``table``, ``schema.table``, ``schema.*`` or ``*.*``, each part quoted or not. Raises FilterError."""
    parts: list[NamePart] = []
    position = 0
    text = text.strip()
    while True:
        match = _PART.match(text, position)
        if match is None:
            break
        bare = match[2]
        parts.append(NamePart(match[1].replace('""', '"'), True) if bare is None else NamePart(bare.strip(), False))
        position = match.end()
        if position == len(text) and len(parts) <= 2:
            return tuple(parts)
        if text[position : position + 1] != ".":
            break
        position += 1
    raise FilterError(f"not a table's name: {text!r}", repair='write schema.table, schema.* or "Quoted"."Name"')


def quoted(name: str) -> str:
    """An identifier as PostgreSQL would print it: with quotes where its case or characters need them."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


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
    parts = parse_name(text)
    if any(part.is_wildcard for part in parts):
        return _resolve_wildcard(connection, text, parts, ours)
    schemas = [part.spellings for part in parts[:-1]] or [tuple(search_path)]
    for name in parts[-1].spellings:
        for schema in schemas[0]:
            found = _load(
                connection, " where n.nspname = %(schema)s and c.relname = %(name)s", schema=schema, name=name
            )
            if found:
                _check_capturable(found[0], ours)
                return Target(found[0].pattern, (found[0],), False)
    raise NotFound(f"there is no table {text}", repair=_near(connection, parts[-1].text, ours))


def matching(connection: Connection, pattern: str, *, ours: str = "realtime") -> tuple[Table, ...]:
    """The tables that a stored pattern means today; none for what is no pattern. Raises psycopg2.Error."""
    try:
        parts = parse_name(pattern)
    except FilterError:
        return ()
    if len(parts) != 2 or (parts[0].is_wildcard and not parts[1].is_wildcard):
        return ()
    if parts[0].is_wildcard:
        return _load(connection, _CAPTURABLE, ours=ours)
    # A stored name is spelt as the catalogue spells it: nothing is folded.
    if parts[1].is_wildcard:
        return _load(connection, _CAPTURABLE + " and n.nspname = %(schema)s", ours=ours, schema=parts[0].text)
    return _load(
        connection, " where n.nspname = %(schema)s and c.relname = %(name)s", schema=parts[0].text, name=parts[1].text
    )


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


def _resolve_wildcard(connection: Connection, text: str, parts: Sequence[NamePart], ours: str) -> Target:
    if not parts[-1].is_wildcard or len(parts) == 1:
        raise FilterError(f"not a table's name: {text!r}", repair="wildcards are schema.* and *.*")
    if parts[0].is_wildcard:
        return Target("*.*", matching(connection, "*.*", ours=ours), True)
    with connection.cursor() as cursor:
        for schema in parts[0].spellings:
            cursor.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,))
            if cursor.fetchone() is not None:
                if schema == ours or schema.startswith("pg_") or schema == "information_schema":
                    raise _uncapturable(f"the schema {schema} is the system's or walstream's own")
                pattern = f"{quoted(schema)}.*"
                return Target(pattern, matching(connection, pattern, ours=ours), True)
    raise NotFound(f"there is no schema {parts[0].text}")


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
    if table.schema == ours or table.schema.startswith("pg_") or table.schema == "information_schema":
        raise _uncapturable(f"the schema {table.schema} is the system's or walstream's own")
    if table.root:
        repair = f"subscribe {table.root}"
        raise _uncapturable(f"{table.pattern} is a partition: its changes are those of {table.root}", repair)


def _uncapturable(message: str, repair: str = "") -> DatabaseRefused:
    return DatabaseRefused(message, reason="not_capturable", repair=repair)


def _near(connection: Connection, name: str, ours: str) -> str:
    tables = {table.name: table.pattern for table in _load(connection, _CAPTURABLE, ours=ours)}
    found = difflib.get_close_matches(name, tables, n=1)
    return f"did you mean {tables[found[0]]}?" if found else ""
