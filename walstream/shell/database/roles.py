"""The database roles that walstream needs, created as far as the connected user may.

What the roles may do with our tables is in schema/grants.sql; which role a token may name is decided in ``auth``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class, under a name that tells it from values

from walstream.shell.database.reports import ObjectReport
from walstream.shell.database.rows import only

OWNER = "walstream_owner"
DAEMON = "walstream_daemon"
CLIENT_ROLES = ("anon", "authenticated", "service_role")

Statement: TypeAlias = sql.Composable


class _Role(NamedTuple):
    """``wanted`` needs more than CREATEROLE; without that privilege the role is made with ``plain`` attributes."""

    name: str
    plain: str
    wanted: str = ""
    attribute: str = ""  # column of pg_roles that ``wanted`` sets


_ROLES = (
    _Role("anon", "nologin"),
    _Role("authenticated", "nologin"),
    _Role("service_role", "nologin", "bypassrls", "rolbypassrls"),
    _Role(OWNER, "nologin"),
    _Role(DAEMON, "login noinherit", "replication", "rolreplication"),
)


def ensure(cursor: Cursor) -> list[ObjectReport]:
    """Create the roles and memberships that are missing, inside the caller's transaction.

    What the user may not do is reported as missing, with the statement for somebody who may. A role that exists
    keeps its attributes.
    """
    reports = [_ensure_role(cursor, role) for role in _ROLES]
    for role, member in _memberships(cursor):
        reports.append(_ensure_member(cursor, role, member))
    return reports


def may_act_as(cursor: Cursor, role: str) -> bool:
    """Whether ``set role`` to it would work. False for a role that does not exist."""
    cursor.execute(
        "select pg_catalog.pg_has_role(r.oid, %s) from pg_catalog.pg_roles r where r.rolname = %s",
        (_set_role_privilege(cursor), role),
    )
    row = cursor.fetchone()
    return bool(row and row[0])


def attempt(cursor: Cursor, statement: Statement) -> psycopg2.Error | None:
    """Run a statement that may be refused, without losing the transaction; returns the refusal."""
    cursor.execute("savepoint walstream_attempt")
    try:
        cursor.execute(statement)
    except psycopg2.Error as error:
        cursor.execute("rollback to savepoint walstream_attempt")
        return error
    cursor.execute("release savepoint walstream_attempt")
    return None


def _ensure_role(cursor: Cursor, role: _Role) -> ObjectReport:
    if _exists(cursor, role.name):
        return ObjectReport("role", role.name, "exists")
    create = sql.SQL("create role {} {}")
    full = create.format(sql.Identifier(role.name), sql.SQL(f"{role.plain} {role.wanted}"))
    plain = create.format(sql.Identifier(role.name), sql.SQL(role.plain))
    refused = attempt(cursor, full)
    if refused is None:
        return ObjectReport("role", role.name, "created")
    if role.wanted and attempt(cursor, plain) is None:
        repair = sql.SQL("alter role {} {}").format(sql.Identifier(role.name), sql.SQL(role.wanted)).as_string(cursor)
        return ObjectReport("role", role.name, "created", f"without {role.wanted.upper()}: {_cause(refused)}", repair)
    if _exists(cursor, role.name):  # somebody else was faster, in another database of the server
        return ObjectReport("role", role.name, "exists")
    return ObjectReport("role", role.name, "missing", _cause(refused), full.as_string(cursor))


def _memberships(cursor: Cursor) -> Iterator[tuple[str, str]]:
    """Pairs of role and member: the daemon, and whoever runs us where that is no superuser, may act as each role."""
    cursor.execute("select current_user, r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user")
    user, superuser = only(cursor)
    for role in CLIENT_ROLES:
        yield role, DAEMON
    if not superuser:
        for role in (OWNER, *CLIENT_ROLES):
            if role != user:
                yield role, user


def _ensure_member(cursor: Cursor, role: str, member: str) -> ObjectReport:
    name = f"{role} to {member}"
    if not (_exists(cursor, role) and _exists(cursor, member)):
        return ObjectReport("membership", name, "missing", "a role is missing")
    cursor.execute(
        "select 1 where pg_catalog.pg_has_role(%s::name, %s::name, %s)", (member, role, _set_role_privilege(cursor))
    )
    if cursor.fetchone() is not None:
        return ObjectReport("membership", name, "exists")
    grant = sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(member))
    refused = attempt(cursor, grant)
    if refused is None:
        return ObjectReport("membership", name, "created")
    return ObjectReport("membership", name, "missing", _cause(refused), grant.as_string(cursor))


def _exists(cursor: Cursor, role: str) -> bool:
    cursor.execute("select 1 from pg_catalog.pg_roles where rolname = %s", (role,))
    return cursor.fetchone() is not None


def _cause(error: psycopg2.Error) -> str:
    return (error.diag.message_primary or str(error)).strip()


def _set_role_privilege(cursor: Cursor) -> str:
    """Before PostgreSQL 16 every membership allows SET ROLE; since then it is an option of the grant."""
    return "SET" if cursor.connection.server_version >= 160000 else "MEMBER"
