"""Which role may see the changes of which table, asked of PostgreSQL and kept in memory.

Until row-level security is judged per row this fails closed: a table with RLS enabled, or one that the role may not
SELECT, goes only to roles that bypass RLS. What a client asked for is decided in ``joins``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from walstream.model import Relation

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

REFRESH_SECONDS = 5.0
"""How long a revoked right or a newly enabled RLS may stay unnoticed."""

_ROLES = """
select r.rolname,
       r.rolbypassrls,
       r.rolsuper,
       pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')
  from pg_catalog.pg_roles r
 where r.rolname = any(%(roles)s)
"""

_TABLES = """
select r.rolname,
       n.nspname,
       c.relname,
       r.rolbypassrls
       or (not c.relrowsecurity
           and pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
           and pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT')),
       c.relrowsecurity
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  cross join pg_catalog.pg_roles r
 where r.rolname = any(%(roles)s)
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
    """Facts of the roles that exist. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_ROLES, {"roles": list(roles)})
        return {name: RoleFacts(bypasses, superuser, member) for name, bypasses, superuser, member in cursor.fetchall()}


def load_rights(connection: PgConnection, roles: Collection[str], tables: Collection[tuple[str, str]]) -> Rights:
    """Rights of all roles to all tables that exist. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            _TABLES,
            {
                "roles": list(roles),
                "schemas": [schema for schema, _ in tables],
                "tables": [table for _, table in tables],
            },
        )
        return {
            (role, schema, table): TableRight(bool(allowed), security)
            for role, schema, table, allowed, security in cursor.fetchall()
        }


class TableAccess:
    """The newest answer, for the router's hot road. What it does not know is not allowed."""

    def __init__(self) -> None:
        self.roles: dict[str, int] = {}  # roles of joined channels, with how many
        self.tables: set[tuple[str, str]] = set()  # tables that were asked about
        self.rights: Rights = {}
        self._allowed: dict[str, set[tuple[str, str]]] = {}

    def allowed(self, role: str, relation: Relation) -> bool:
        """Whether changes of ``relation`` may go to ``role``."""
        tables = self._allowed.get(role)
        return tables is not None and (relation.schema, relation.name) in tables

    def knows(self, role: str, schema: str, table: str) -> bool:
        """Whether the pair was asked about."""
        return role in self.roles and (schema, table) in self.tables

    def update(self, rights: Rights, roles: Collection[str], tables: Collection[tuple[str, str]]) -> None:
        """Take over an answer for all pairs of ``roles`` and ``tables``; pairs without a right become forbidden."""
        self.tables.update(tables)
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
