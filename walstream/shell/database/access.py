"""Which role may see the changes of which table, and which of its columns, asked of PostgreSQL and kept in memory.

It fails closed: what is not known is not allowed. Under row-level security a right is for bindings with a viewer alone,
whose rows the table's policies choose. What a client asked for is decided in ``joins``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from walstream.model import Catalog, Relation
from walstream.policy import Guard, Protection, Viewer, guard
from walstream.shell.database.catalog import is_name, name_arrays
from walstream.shell.database.policies import load_protections

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

REFRESH_SECONDS = 5.0
"""How long a revoked right or a newly enabled RLS may stay unnoticed."""

ABSENT_MAX = 1000
"""Names of tables that are remembered although no answer knew them."""

_ROLES = """
select r.rolname,
       r.rolbypassrls,
       r.rolsuper,
       pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')
  from pg_catalog.pg_roles r
 where r.rolname = any(%(roles)s::name[])
"""

# A partition is read through its root: its own rights and policies are not asked for, and its changes go out under the
# root's name. What is neither a table nor one of its partitions has no changes of its own.
_TABLES = """
select r.rolname,
       n.nspname,
       c.relname,
       r.rolbypassrls
       or r.rolsuper
       or (pg_catalog.has_schema_privilege(r.oid, rc.relnamespace, 'USAGE')
           and coalesce(held.of_table or held.of_key, false)),
       case when not held.of_table and not r.rolbypassrls then held.columns end
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_class rc
    on rc.oid = coalesce(case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end, c.oid)
  cross join pg_catalog.pg_roles r
  cross join lateral (
      select r.rolsuper or pg_catalog.has_table_privilege(r.oid, rc.oid, 'SELECT') as of_table,
             -- A row without its key is of no use to anybody, and its key is always sent.
             bool_and(can.be_read or not can.is_key) and bool_or(can.be_read) as of_key,
             array_agg(can.attname order by can.attnum) filter (where can.be_read) as columns
        from (
            select a.attname::text,
                   a.attnum,
                   pg_catalog.has_column_privilege(r.oid, rc.oid, a.attnum, 'SELECT') as be_read,
                   exists (
                       select
                         from pg_catalog.pg_index i
                        where i.indrelid = rc.oid and i.indisprimary and a.attnum = any(i.indkey)
                   ) as is_key
              from pg_catalog.pg_attribute a
             where a.attrelid = rc.oid and a.attnum > 0 and not a.attisdropped
        ) can
  ) held
 where r.rolname = any(%(roles)s::name[])
   and c.relkind in ('r', 'p')
   and (n.nspname, c.relname) in (select * from unnest(%(schemas)s::name[], %(tables)s::name[]))
"""


class RoleFacts(NamedTuple):
    """What a token's role is to the database."""

    bypasses_rls: bool
    superuser: bool
    member: bool  # the daemon's own role is a member of it


class TableRight(NamedTuple):
    """One role's right to one table. ``columns``: those that it may see, None for all.

    ``protection``: the policies that choose the rows, None where all of them are seen.
    """

    allowed: bool
    columns: frozenset[str] | None = None
    protection: Protection | None = None

    @property
    def is_shut(self) -> bool:
        """Whether no row can be seen: the table is not allowed, or no policy lets the role see anything."""
        policies = self.protection.policies if self.protection is not None else None
        return not self.allowed or (policies is not None and not any(policy.permissive for policy in policies))


Rights = dict[tuple[str, str, str], TableRight]
"""By (role, schema, table); a table that does not exist has no entry."""

_NO_RIGHT = TableRight(False)


def load_roles(connection: PgConnection, roles: Collection[str]) -> dict[str, RoleFacts]:
    """Facts of the roles that exist; tokens name them, so they may be anything. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_ROLES, {"roles": list(filter(is_name, roles))})
        return {name: RoleFacts(bypasses, superuser, member) for name, bypasses, superuser, member in cursor.fetchall()}


def load_rights(connection: PgConnection, roles: Collection[str], tables: Collection[tuple[str, str]]) -> Rights:
    """Rights of all roles to all tables that exist. Raises psycopg2.Error."""
    # The policies last: a table that gets its first policy meanwhile is better looked at as one with them.
    with connection.cursor() as cursor:
        cursor.execute(_TABLES, {"roles": list(filter(is_name, roles)), **name_arrays(tables)})
        rows = cursor.fetchall()
    protections = load_protections(connection, roles, tables)
    return {
        (role, schema, table): TableRight(
            bool(allowed),
            None if columns is None else frozenset(columns),
            protections.get((role, schema, table)),
        )
        for role, schema, table, allowed, columns in rows
    }


class TableAccess:
    """The newest answer, for the router's hot road. What it does not know is not allowed.

    ``roles``: those of joined channels, with how many. ``tables``: those that someone asked about; every table that any
    role is allowed is one of them, so that a refresh of all roles and tables misses nothing. Clients may ask for any
    name: of those that nobody has a right to, and that may not exist, only the newest ``ABSENT_MAX`` are kept.

    ``on_protected`` is called with the (role, schema, table) whose policies, or whether there are any, have changed.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.roles: dict[str, int] = {}
        self.tables: set[tuple[str, str]] = set()
        self.rights: Rights = {}
        self.on_protected: Callable[[set[tuple[str, str, str]]], None] = lambda pairs: None
        self.updates = 0  # answers so far: whoever waits sees by it whether there are newer ones
        self._catalog = catalog
        self._open: dict[str, set[tuple[str, str]]] = {}  # all rows and columns
        self._absent: dict[tuple[str, str], None] = {}

    def right(self, role: str, relation: Relation) -> TableRight:
        """What a role may see of a relation."""
        return self.rights.get((role, relation.schema, relation.name), _NO_RIGHT)

    def is_open(self, role: str, relation: Relation) -> bool:
        """Whether a role may see all of a relation, every row and column."""
        tables = self._open.get(role)
        return tables is not None and (relation.schema, relation.name) in tables

    def guard(self, viewer: Viewer, relation: Relation) -> Guard:
        """What a viewer may see of a relation's rows. Raises CatalogMiss."""
        right = self.right(viewer.role, relation)
        return right.allowed and guard(right.protection, viewer, relation, self._catalog)

    def knows(self, role: str, schema: str, table: str) -> bool:
        """Whether the answer for the pair is known and kept fresh."""
        return role in self.roles and (role, schema, table) in self.rights

    def update(self, rights: Rights, roles: Collection[str], tables: Collection[tuple[str, str]]) -> None:
        """Take over an answer for all pairs of ``roles`` and ``tables``; pairs without a right become forbidden."""
        self.updates += 1
        protected: set[tuple[str, str, str]] = set()
        for role in roles:
            is_open = self._open.setdefault(role, set())
            for schema, table in tables:
                pair = (role, schema, table)
                right, before = rights.get(pair), self.rights.get(pair, _NO_RIGHT)
                if right is None:
                    self.rights.pop(pair, None)
                else:
                    self.rights[pair] = right
                now = right or _NO_RIGHT
                if (now.allowed, now.protection) != (before.allowed, before.protection):
                    protected.add(pair)
                if now.allowed and now.columns is None and now.protection is None:
                    is_open.add((schema, table))
                else:
                    is_open.discard((schema, table))
        self._remember(rights, tables)
        if protected:
            self.on_protected(protected)

    def _remember(self, rights: Rights, tables: Collection[tuple[str, str]]) -> None:
        self.tables.update(tables)
        present = {(schema, table) for _, schema, table in rights}
        for pair in tables:
            self._absent.pop(pair, None)
            if pair not in present:
                self._absent[pair] = None
        while len(self._absent) > ABSENT_MAX:
            oldest = next(iter(self._absent))
            del self._absent[oldest]
            if not any((role, *oldest) in self.rights for role in self._open):
                self.tables.discard(oldest)

    def enter(self, role: str) -> None:
        """A channel with this role has joined."""
        self.roles[role] = self.roles.get(role, 0) + 1

    def left(self, role: str) -> None:
        """A channel with this role has gone; the last one's role is no longer refreshed."""
        count = self.roles.get(role, 0) - 1
        if count > 0:
            self.roles[role] = count
            return
        self.roles.pop(role, None)
        self._open.pop(role, None)
        for schema, table in self.tables:
            self.rights.pop((role, schema, table), None)
