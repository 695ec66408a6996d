"""Row-level security as the catalog has it: which policies stand between which role and which table.

What they mean is worked out in ``policy``; asking PostgreSQL about rows is ``shell.delivery.judge``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from walstream.policy.definitions import term_of
from walstream.policy.model import Policy, Protection
from walstream.policy.nodes import Unreadable, Value, attributes_of, read
from walstream.policy.recognise import Names, called, collations_of, enum_types, recognise
from walstream.policy.terms import Term
from walstream.shell.database.catalog import is_name, name_arrays
from walstream.shell.database.rows import only

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
select h.nspname::text, h.relname::text, n.nspname::text, c.relname::text, h.roles::text[],
       (select coalesce(json_agg(json_build_array(
                   a.attnum, a.attname, a.atttypid::int8,
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


# PostgreSQL 17, 51.40 pg_proc, 51.20 pg_enum. A function with settings of its own counts only where they are a search
# path on which pg_catalog comes first. Constants in trees lie as in the server's memory: only the usual order of bytes
# is read.
_FACTS = """
select (select coalesce(json_agg(json_build_array(p.oid::int8, p.prosrc, p.prorettype::int8)), '[]')
          from pg_catalog.pg_proc p
          join pg_catalog.pg_language l on l.oid = p.prolang
         where p.oid = any(%(functions)s::oid[])
           and l.lanname = 'sql'
           and p.prokind = 'f' and p.pronargs = 0 and not p.proretset
           and to_jsonb(p) ->> 'prosqlbody' is null
           and coalesce(array_to_string(p.proconfig, ';'), '') in
               ('', 'search_path=', 'search_path=""', 'search_path=pg_catalog')),
       (select coalesce(json_agg(json_build_array(r.rolname, called.oid::int8)), '[]')
          from pg_catalog.pg_roles r
          cross join unnest(%(functions)s::oid[]) as called (oid)
         where r.rolname = any(%(roles)s::name[])
           and pg_catalog.has_function_privilege(r.oid, called.oid, 'EXECUTE') is not true),
       (select coalesce(json_agg(json_build_array(e.oid::int8, e.enumlabel)), '[]')
          from pg_catalog.pg_enum e
         where e.enumtypid = any(%(types)s::oid[])),
       (select coalesce(json_agg(c.oid::int8), '[]')
          from pg_catalog.pg_collation c
         where c.oid = any(%(collations)s::oid[]) and c.collisdeterministic),
       pg_catalog.version() ~ '(x86|i.86|amd64|AMD64|aarch64|arm64|64le|riscv|loongarch|Visual C)'
"""


class _Examined(NamedTuple):
    """A condition's tree, and what has to be known about it. ``attributes``: None where it could not be read."""

    tree: Value
    attributes: frozenset[int] | None
    functions: frozenset[int] = frozenset()
    types: frozenset[int] = frozenset()
    collations: frozenset[int] = frozenset()


class _Facts(NamedTuple):
    """What the conditions' numbers stand for; ``denied``: functions by the role that may not call them."""

    functions: Mapping[int, Term]
    denied: Mapping[str, frozenset[int]]
    labels: Mapping[int, str]
    collations: frozenset[int]
    readable: bool


def load_protections(
    connection: PgConnection, roles: Collection[str], tables: Collection[tuple[str, str]]
) -> Protections:
    """What stands between all roles and all tables that exist. Raises psycopg2.Error.

    ``tables``: by the names subscribers know; of a partition its root's policies count, and its ``Protection`` has the
    root's name. The connection's search_path has to be empty: conditions are printed as it needs them.
    """
    wanted = list(filter(is_name, roles))
    with connection.cursor() as cursor:
        cursor.execute(_POLICIES, {"roles": wanted, **name_arrays(tables)})
        rows = cursor.fetchall()
    facts = _load_facts(connection, wanted, [_examine(row[3]) for *_, policies in rows for row in policies])
    protections: Protections = {}
    for schema, table, root_schema, root_table, held, attributes, policies in rows:
        columns = {number: _Attribute(name, oid, written) for number, name, oid, written in attributes}
        loaded = [(set(applies), _policy(row, columns, facts), _examine(row[3])) for *row, applies in policies]
        for role in held:
            denied = facts.denied.get(role, frozenset())
            mine = tuple(
                msgspec.structs.replace(policy, formula=None) if denied & examined.functions else policy
                for applies, policy, examined in loaded
                if role in applies
            )
            protections[role, schema, table] = Protection(root_schema, root_table, mine)
    return protections


class _Attribute(NamedTuple):
    """A column, with its type as SQL writes it."""

    name: str
    oid: int
    written: str


@lru_cache(maxsize=2000)
def _examine(text: str) -> _Examined:
    try:
        tree = read(text)
        return _Examined(tree, attributes_of(tree), called(tree), enum_types(tree), collations_of(tree))
    except Unreadable:
        return _Examined(None, None)


def _load_facts(connection: PgConnection, roles: Sequence[str], examined: Collection[_Examined]) -> _Facts:
    functions, types, collations = (
        sorted(frozenset[int]().union(*(getattr(one, field) for one in examined)))
        for field in ("functions", "types", "collations")
    )
    if not examined:
        return _Facts({}, {}, {}, frozenset(), False)
    with connection.cursor() as cursor:
        cursor.execute(_FACTS, {"functions": functions, "types": types, "collations": collations, "roles": list(roles)})
        bodies, denied, labels, exact, readable = only(cursor)
    terms = {oid: term_of(body, result) for oid, body, result in bodies}
    refused: dict[str, set[int]] = {}
    for role, oid in denied:
        refused.setdefault(role, set()).add(oid)
    return _Facts(
        {oid: term for oid, term in terms.items() if term is not None},
        {role: frozenset(oids) for role, oids in refused.items()},
        dict(labels),
        frozenset(exact),
        readable,
    )


def _policy(row: Sequence[Any], attributes: Mapping[int, _Attribute], facts: _Facts) -> Policy:
    name, permissive, condition, text = row
    examined = _examine(text)
    numbers = frozenset(attributes) if examined.attributes is None else examined.attributes
    looked_at = [attributes[number] for number in sorted(numbers) if number in attributes]
    formula = None
    if facts.readable and examined.attributes is not None:
        columns = {number: (attribute.name, attribute.oid) for number, attribute in attributes.items()}
        formula = recognise(examined.tree, Names(columns, facts.functions, facts.labels, facts.collations))
    return Policy(
        name,
        permissive,
        # A condition that PostgreSQL cannot print any more belongs to a table that has gone.
        condition or "false",
        tuple((attribute.name, attribute.written) for attribute in looked_at),
        formula,
        SYSTEM_COLUMN if any(number not in attributes for number in numbers) else "",
    )
