"""Catalog facts for the decoders, read from PostgreSQL in batches.

What they are used for is told in ``walstream.model``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from walstream.model import Column, RelationInfo, ReplicaIdentity, TypeInfo

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

NAME_BYTES_MAX: Final = 63
"""The longest name (PostgreSQL 17, 4.1.1 Identifiers and Key Words)."""

# PostgreSQL 17, 51.11 pg_class, 51.7 pg_attribute, 51.26 pg_index, 51.12 pg_collation, 51.15 pg_database.
# A partition's primary key and columns are its root's; what its old rows hold is decided by its own replica identity,
# which a deferrable key is not. The columns of an index's INCLUDE are no part of a key.
# Columns of pg_collation and pg_database come and go with versions (14: no datlocprovider; 17: colllocale, datlocale
# and the provider "b"), so they are read as JSON. Locales of libc are compared in small letters and without hyphens.
_RELATIONS = """
with wanted as (
    select c.oid, n.nspname, c.relname, c.relreplident,
           coalesce(case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end, c.oid) as root
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
       and c.relkind in ('r', 'p', 'm')
),
keys as (
    select i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate and i.indisvalid as usable,
           array(select a.attname::text
                   from pg_catalog.pg_attribute a
                  where a.attrelid = i.indrelid and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])
                  order by a.attnum) as names
      from pg_catalog.pg_index i
     where i.indrelid in (select w.oid from wanted w union select w.root from wanted w)
       and (i.indisprimary or i.indisreplident)
),
locales as (
    select l.oid, l.collisdeterministic as is_exact, f.provider,
           lower(replace(f.collate, '-', '')) as collate, lower(replace(f.ctype, '-', '')) as ctype, f.locale
      from pg_catalog.pg_collation l
      cross join lateral (
          select to_jsonb(l) as own,
                 (select to_jsonb(d) from pg_catalog.pg_database d
                   where d.datname = pg_catalog.current_database()) as db
      ) j
      cross join lateral (
          select case when l.collprovider = 'd' then coalesce(db ->> 'datlocprovider', 'c')
                      else l.collprovider::text end as provider,
                 case when l.collprovider = 'd' then db ->> 'datcollate' else own ->> 'collcollate' end as collate,
                 case when l.collprovider = 'd' then db ->> 'datctype' else own ->> 'collctype' end as ctype,
                 case when l.collprovider = 'd' then db ->> 'datlocale' else own ->> 'colllocale' end as locale
      ) f
),
columns as (
    select a.attrelid, a.attnum, a.attname::text as name, a.atttypid::int8 as type_oid, t.typname::text as type_name,
           l.is_exact = false as is_fuzzy,
           case l.provider when 'c' then l.collate in ('c', 'posix', 'c.utf8')
                           when 'b' then true
                           else false end as is_ordered,
           case l.provider when 'c' then l.ctype in ('c', 'posix')
                           when 'b' then l.locale = 'C'
                           else false end as is_ascii
      from pg_catalog.pg_attribute a
      join pg_catalog.pg_type t on t.oid = a.atttypid
      left join locales l on l.oid = a.attcollation
     where a.attrelid in (select w.root from wanted w) and a.attnum > 0 and not a.attisdropped
)
select w.oid::int8 as oid, w.nspname::text as schema, w.relname::text as name, w.relreplident::text as identity,
       array[rn.nspname::text, rc.relname::text] as root, rc.relrowsecurity as row_security,
       coalesce((select k.names from keys k where k.indrelid = w.root and k.indisprimary), '{}') as primary_key,
       coalesce((select k.names from keys k
                  where k.indrelid = w.oid and k.usable
                    and (w.relreplident = 'd' and k.indisprimary or w.relreplident = 'i' and k.indisreplident)),
                '{}') as identity_columns,
       c.names, c.type_oids, c.type_names, c.ordered, c.ascii, c.fuzzy
  from wanted w
  join pg_catalog.pg_class rc on rc.oid = w.root
  join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
  cross join lateral (
      select coalesce(array_agg(c.name order by c.attnum), '{}') as names,
             coalesce(array_agg(c.type_oid order by c.attnum), '{}') as type_oids,
             coalesce(array_agg(c.type_name order by c.attnum), '{}') as type_names,
             coalesce(array_agg(c.name) filter (where c.is_ordered), '{}') as ordered,
             coalesce(array_agg(c.name) filter (where c.is_ascii), '{}') as ascii,
             coalesce(array_agg(c.name) filter (where c.is_fuzzy), '{}') as fuzzy
        from columns c
       where c.attrelid = w.root
  ) c
"""

# PostgreSQL 17, 51.64 pg_type, with the types inside it: elements, bases of domains, fields of composites.
_TYPES = """
with recursive reached (oid) as (
    select unnest(%(oids)s::oid[])
    union
    select inner_type.oid
      from reached r
      join pg_catalog.pg_type t on t.oid = r.oid
      cross join lateral (
          select t.typelem as oid where t.typelem <> 0
          union all
          select t.typbasetype where t.typbasetype <> 0
          union all
          select a.atttypid from pg_catalog.pg_attribute a
           where t.typrelid <> 0 and t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
      ) inner_type
)
select t.oid::int8, t.typname::text, t.typtype::text, t.typcategory::text,
       case when t.typcategory = 'A' then t.typelem::int8 else 0 end,
       t.typbasetype::int8, coalesce(e.typdelim, t.typdelim)::text,
       array(select a.attname::text from pg_catalog.pg_attribute a
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
              order by a.attnum),
       array(select a.atttypid::int8 from pg_catalog.pg_attribute a
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
              order by a.attnum),
       array(select l.enumlabel::text from pg_catalog.pg_enum l where l.enumtypid = t.oid order by l.enumsortorder)
  from (select distinct oid from reached) r
  join pg_catalog.pg_type t on t.oid = r.oid
  left join pg_catalog.pg_type e on e.oid = t.typelem
"""


def load_relations(
    connection: PgConnection, names: Collection[tuple[str, str]]
) -> dict[tuple[str, str], RelationInfo | None]:
    """Facts of the named tables; None for those that do not exist. Raises psycopg2.Error."""
    facts: dict[tuple[str, str], RelationInfo | None] = dict.fromkeys(names)
    with connection.cursor() as cursor:
        cursor.execute(_RELATIONS, name_arrays(names))
        for row in cursor.fetchall():
            info = _relation_info(_Row(*row))
            facts[info.schema, info.name] = info
    return facts


def name_arrays(names: Collection[tuple[str, str]]) -> dict[str, list[str]]:
    """Parameters ``schemas`` and ``tables`` of a statement. Leaves out what cannot be a name in a database.

    Clients choose names: PostgreSQL would cut one that is too long and find another table by it, and psycopg2 raises
    for NUL and for what has no UTF-8.
    """
    possible = [pair for pair in names if is_name(pair[0]) and is_name(pair[1])]
    return {"schemas": [schema for schema, _ in possible], "tables": [table for _, table in possible]}


def is_name(text: str) -> bool:
    """Whether anything in a database could be called so."""
    try:
        return len(text.encode()) <= NAME_BYTES_MAX and "\0" not in text
    except UnicodeEncodeError:
        return False


class _Row(NamedTuple):
    """One row of the question about relations, in its order."""

    oid: int
    schema: str
    name: str
    identity: str
    root: list[str]
    row_security: bool
    primary_key: list[str]
    identity_columns: list[str]
    names: list[str]
    type_oids: list[int]
    type_names: list[str]
    ordered: list[str]
    ascii_case: list[str]
    fuzzy: list[str]


def _relation_info(row: _Row) -> RelationInfo:
    replica_identity = ReplicaIdentity(row.identity)
    return RelationInfo(
        oid=row.oid,
        schema=row.schema,
        name=row.name,
        primary_key=tuple(row.primary_key),
        replica_identity=replica_identity,
        identity_columns=tuple(row.names if replica_identity is ReplicaIdentity.FULL else row.identity_columns),
        root=(row.root[0], row.root[1]),
        column_order=tuple(row.names),
        columns=tuple(map(Column, row.names, row.type_oids, row.type_names)),
        row_security=row.row_security,
        ordered_text=frozenset(row.ordered),
        ascii_case=frozenset(row.ascii_case),
        fuzzy_text=frozenset(row.fuzzy),
    )


def load_types(connection: PgConnection, oids: Collection[int]) -> dict[int, TypeInfo | None]:
    """Facts of the types and of every type inside them; None for those that do not exist. Raises psycopg2.Error."""
    facts: dict[int, TypeInfo | None] = dict.fromkeys(oids)
    with connection.cursor() as cursor:
        cursor.execute(_TYPES, {"oids": list(oids)})
        for oid, name, kind, category, element, base, delimiter, fields, field_types, labels in cursor.fetchall():
            members = tuple(zip(fields, field_types, strict=True))
            facts[oid] = TypeInfo(oid, name, kind, category, element, base, delimiter, members, tuple(labels))
    return facts
