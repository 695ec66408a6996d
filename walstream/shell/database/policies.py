"""Row-level security as the catalog has it: which policies stand between which role and which table.

What they mean is worked out in ``policy``; asking PostgreSQL about rows is ``shell.delivery.judge``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from walstream.policy.model import Policy, Protection
from walstream.policy.nodes import Unreadable, attributes_of, read
from walstream.shell.database.catalog import is_name, name_arrays

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

Protections = dict[tuple[str, str, str], Protection]
"""By (role, schema, table). A pair without an entry has no row-level security in its way."""

SYSTEM_COLUMN = "system_column"
"""``Policy.problem`` of a condition that looks at what only a stored row has."""

# PostgreSQL 17, 51.39 pg_policy, 51.7 pg_attribute, 51.12 pg_collation. Who is held back by RLS is check_enable_rls()
# of utils/misc/rls.c; whose policies count, check_role_for_policy() of rewrite/rowsecurity.c. A policy without USING
# (FOR ALL … WITH CHECK alone) neither lets see nor hides. One statement, for it sees one state of the catalog.
_POLICIES = """
with wanted as (
    select n.nspname, c.relname,
           coalesce(case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end, c.oid) as root
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
       and c.relkind in ('r', 'p')
),
held as (
    select w.nspname, w.relname, w.root, r.oid as role, r.rolname
      from wanted w
      join pg_catalog.pg_class c on c.oid = w.root
      cross join pg_catalog.pg_roles r
     where r.rolname = any(%(roles)s::name[])
       and c.relrowsecurity
       and not r.rolsuper
       and not r.rolbypassrls
       and (c.relforcerowsecurity or not pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE'))
)
select h.root::int8, h.nspname::text, h.relname::text, n.nspname::text, c.relname::text, h.roles::text[],
       (select coalesce(json_agg(json_build_array(
                   a.attnum, a.attname,
                   pg_catalog.format_type(a.atttypid, a.atttypmod)
                   || coalesce((select format(' COLLATE %%I.%%I', ln.nspname, l.collname)
                                  from pg_catalog.pg_collation l
                                  join pg_catalog.pg_namespace ln on ln.oid = l.collnamespace
                                 where l.oid = a.attcollation and a.attcollation <> t.typcollation), ''))
                   order by a.attnum), '[]')
          from pg_catalog.pg_attribute a
          join pg_catalog.pg_type t on t.oid = a.atttypid
         where a.attrelid = h.root and a.attnum > 0 and not a.attisdropped),
       (select coalesce(json_agg(json_build_array(
                   p.polname, p.polpermissive, pg_catalog.pg_get_expr(p.polqual, p.polrelid), p.polqual::text,
                   array(select u.rolname
                           from held u
                          where u.nspname = h.nspname and u.relname = h.relname
                            and exists (select from unnest(p.polroles) as named (role)
                                         where case when named.role = 0 then true
                                                    else pg_catalog.pg_has_role(u.role, named.role, 'USAGE') end)))
                   order by p.polname), '[]')
          from pg_catalog.pg_policy p
         where p.polrelid = h.root and p.polcmd in ('r', '*') and p.polqual is not null)
  from (select h.root, h.nspname, h.relname, array_agg(h.rolname) as roles
          from held h
         group by h.root, h.nspname, h.relname) h
  join pg_catalog.pg_class c on c.oid = h.root
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
"""


def load_protections(
    connection: PgConnection, roles: Collection[str], tables: Collection[tuple[str, str]]
) -> Protections:
    """What stands between all roles and all tables that exist. Raises psycopg2.Error.

    ``tables``: by the names subscribers know; of a partition its root's policies count, and its ``Protection`` has the
    root's name. The connection's search_path has to be empty: conditions are printed as it needs them.
    """
    with connection.cursor() as cursor:
        cursor.execute(_POLICIES, {"roles": list(filter(is_name, roles)), **name_arrays(tables)})
        rows = cursor.fetchall()
    protections: Protections = {}
    for _, schema, table, root_schema, root_table, held, attributes, policies in rows:
        columns = {number: (name, type_name) for number, name, type_name in attributes}
        loaded = [(set(applies), _policy(columns, *facts)) for *facts, applies in policies]
        for role in held:
            mine = tuple(policy for applies, policy in loaded if role in applies)
            protections[role, schema, table] = Protection(root_schema, root_table, mine)
    return protections


def _policy(
    columns: Mapping[int, tuple[str, str]], name: str, permissive: bool, condition: str | None, tree: str
) -> Policy:
    try:
        parsed = read(tree)
        numbers = attributes_of(parsed)
    except Unreadable:
        parsed, numbers = None, frozenset(columns)
    problem = SYSTEM_COLUMN if any(number not in columns for number in numbers) else ""
    looked_at = tuple(columns[number] for number in sorted(numbers) if number in columns)
    # A condition that PostgreSQL cannot print any more belongs to a table that has gone.
    return Policy(name, permissive, condition or "false", looked_at, None, problem)
