"""Catalog facts for the decoders, read from PostgreSQL in batches.

What they are used for is told in ``walstream.model``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from walstream.model import Column, RelationInfo, ReplicaIdentity, TypeInfo

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

# PostgreSQL 17, 51.11 pg_class, 51.7 pg_attribute, 51.26 pg_index. A partition's primary key is its root's.
_RELATIONS = """
with wanted as (
    select c.oid, n.nspname, c.relname, c.relreplident, c.relrowsecurity,
           coalesce(case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end, c.oid) as root
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
)
select w.oid, w.nspname, w.relname, w.relreplident::text,
       rn.nspname, rc.relname, rc.relrowsecurity,
       array(select a.attname::text
               from pg_catalog.pg_index i
               join pg_catalog.pg_attribute a on a.attrelid = w.oid and a.attnum = any(i.indkey)
              where i.indrelid = w.oid and i.indisprimary
              order by a.attnum),
       array(select a.attname::text
               from pg_catalog.pg_index i
               join pg_catalog.pg_attribute a on a.attrelid = w.oid and a.attnum = any(i.indkey)
              where i.indrelid = w.oid
                and ((w.relreplident = 'd' and i.indisprimary) or (w.relreplident = 'i' and i.indisreplident))
              order by a.attnum),
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = w.root and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select a.atttypid::int8 from pg_catalog.pg_attribute a
              where a.attrelid = w.root and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select t.typname::text from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
              where a.attrelid = w.root and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select a.attname::text
               from pg_catalog.pg_attribute a
               join pg_catalog.pg_collation l on l.oid = a.attcollation
              where a.attrelid = w.root and a.attnum > 0 and not a.attisdropped
                and coalesce(case when l.collprovider = 'd' then
                                 (select d.datcollate from pg_catalog.pg_database d
                                   where d.datname = pg_catalog.current_database())
                             else coalesce(l.collcollate, '') end, '') in ('C', 'POSIX', 'C.UTF-8', 'C.utf8', 'ucs_basic'))
  from wanted w
  join pg_catalog.pg_class rc on rc.oid = w.root
  join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
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
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select a.atttypid::int8 from pg_catalog.pg_attribute a
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum),
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
        cursor.execute(
            _RELATIONS, {"schemas": [schema for schema, _ in names], "tables": [table for _, table in names]}
        )  # fmt: skip
        for row in cursor.fetchall():
            info = _relation_info(row)
            facts[info.schema, info.name] = info
    return facts


def _relation_info(row: tuple[object, ...]) -> RelationInfo:
    (oid, schema, name, identity, root_schema, root, security, key, identity_columns, order, oids, types, ordered) = row
    columns = tuple(Column(*parts) for parts in zip(order, oids, types, strict=True))  # type: ignore[call-overload]  # arrays of equal length
    replica_identity = ReplicaIdentity(identity)
    held = tuple(order) if replica_identity is ReplicaIdentity.FULL else tuple(identity_columns)  # type: ignore[arg-type]  # text[]
    return RelationInfo(
        oid=int(str(oid)),
        schema=str(schema),
        name=str(name),
        primary_key=tuple(key),  # type: ignore[arg-type]  # text[]
        replica_identity=replica_identity,
        identity_columns=held,
        root=(str(root_schema), str(root)),
        column_order=tuple(order),  # type: ignore[arg-type]  # text[]
        columns=columns,
        row_security=bool(security),
        ordered_text=frozenset(ordered),  # type: ignore[arg-type]  # text[]
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
