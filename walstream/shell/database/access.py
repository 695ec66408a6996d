"""Which role may see the changes of which table, asked of PostgreSQL and kept in memory.

Until row-level security is judged per row this fails closed: a table with RLS enabled, or one that the role may not
SELECT, goes only to roles that bypass RLS. What a client asked for is decided in ``joins``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from walstream.model import Relation
from walstream.shell.database.catalog import is_name, name_arrays

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
       or (not rc.relrowsecurity
           and pg_catalog.has_schema_privilege(r.oid, rc.relnamespace, 'USAGE')
           and pg_catalog.has_table_privilege(r.oid, rc.oid, 'SELECT')),
       rc.relrowsecurity
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_class rc
    on rc.oid = coalesce(case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end, c.oid)
  cross join pg_catalog.pg_roles r
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
    """One role's right to one table."""

    allowed: bool
    row_security: bool


Rights = dict[tuple[str, str, str], TableRight]
"""By (role, schema, table); a table that does not exist has no entry."""


def load_roles(connection: PgConnection, roles: Collection[str]) -> dict[str, RoleFacts]:
    """Facts of the roles that exist; tokens name them, so they may be anything. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_ROLES, {"roles": list(filter(is_name, roles))})
        return {name: RoleFacts(bypasses, superuser, member) for name, bypasses, superuser, member in cursor.fetchall()}


def load_rights(connection: PgConnection, roles: Collection[str], tables: Collection[tuple[str, str]]) -> Rights:
    """Rights of all roles to all tables that exist. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES, {"roles": list(filter(is_name, roles)), **name_arrays(tables)})
        return {
            (role, schema, table): TableRight(bool(allowed), security)
            for role, schema, table, allowed, security in cursor.fetchall()
        }


class TableAccess:
    """The newest answer, for the router's hot road. What it does not know is not allowed.

    ``roles``: those of joined channels, with how many. ``tables``: those that someone asked about; every table that any
    role is allowed is one of them, so that a refresh of all roles and tables misses nothing. Clients may ask for any
    name: of those that nobody has a right to, and that may not exist, only the newest ``ABSENT_MAX`` are kept.
    """

    def __init__(self) -> None:
        self.roles: dict[str, int] = {}
        self.tables: set[tuple[str, str]] = set()
        self.rights: Rights = {}
        self._allowed: dict[str, set[tuple[str, str]]] = {}
        self._absent: dict[tuple[str, str], None] = {}

    def allowed(self, role: str, relation: Relation) -> bool:
        """Whether changes of ``relation`` may go to ``role``."""
        tables = self._allowed.get(role)
        return tables is not None and (relation.schema, relation.name) in tables

    def knows(self, role: str, schema: str, table: str) -> bool:
        """Whether the answer for the pair is known and kept fresh."""
        return role in self.roles and (role, schema, table) in self.rights

    def update(self, rights: Rights, roles: Collection[str], tables: Collection[tuple[str, str]]) -> None:
        """Take over an answer for all pairs of ``roles`` and ``tables``; pairs without a right become forbidden."""
        for role in roles:
            allowed = self._allowed.setdefault(role, set())
            for schema, table in tables:
                right = rights.get((role, schema, table))
                if right is None:
                    self.rights.pop((role, schema, table), None)
                    allowed.discard((schema, table))
                    continue
                self.rights[role, schema, table] = right
                if right.allowed:
                    allowed.add((schema, table))
                else:
                    allowed.discard((schema, table))
        self._remember(rights, tables)

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
            if not any((role, *oldest) in self.rights for role in self._allowed):
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
        self._allowed.pop(role, None)
        for schema, table in self.tables:
            self.rights.pop((role, schema, table), None)
