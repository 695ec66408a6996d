"""``auth.uid()``, ``auth.role()`` and ``auth.jwt()``, which policies are written with: made where they are missing.

Whatever is there already, Supabase Auth's or somebody's own, is left as it is. Their bodies are those that
``policy.definitions`` understands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class, under a name that tells it from values

from walstream.shell.database import roles
from walstream.shell.database.reports import ObjectReport
from walstream.shell.database.rows import scalar

SCHEMA: Final = "auth"

# Without settings of their own: a function that has some is not merged into the query that calls it. The bodies name
# nothing but what is in pg_catalog, which no search path can hide.
FUNCTIONS: Final = {
    "uid": (
        "uuid",
        (
            "select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),"
            " nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid"
        ),
        "walstream: who asks, by the token, as a uuid",
    ),
    "role": (
        "text",
        (
            "select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''),"
            " nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')::text"
        ),
        "walstream: the role that the token names",
    ),
    "jwt": (
        "jsonb",
        (
            "select coalesce(nullif(current_setting('request.jwt.claim', true), ''),"
            " nullif(current_setting('request.jwt.claims', true), ''))::jsonb"
        ),
        "walstream: all claims of the token",
    ),
}
"""By name: the type that it returns, its body, and its comment."""


def ensure(cursor: Cursor) -> Iterator[ObjectReport]:
    """Make what is missing, as far as the user may, inside the caller's transaction. Raises psycopg2.Error.

    What the user may not do is reported as missing, with the statement for somebody who may.
    """
    is_there = _has_schema(cursor)
    if is_there:
        yield ObjectReport("schema", SCHEMA, "exists")
    else:
        refused = _make_schema(cursor)
        if refused is not None:
            yield ObjectReport("schema", SCHEMA, "missing", _cause(refused), "create schema auth")
    for name, (type_, body, comment) in FUNCTIONS.items():
        yield _ensure_function(cursor, name, type_, body, comment)
    if not is_there and _has_schema(cursor):
        yield ObjectReport("schema", SCHEMA, "created")
    for role in roles.CLIENT_ROLES:
        yield from _lacks(cursor, role)


def _has_schema(cursor: Cursor) -> bool:
    cursor.execute("select exists (select from pg_catalog.pg_namespace where nspname = %s)", (SCHEMA,))
    return bool(scalar(cursor))


def _make_schema(cursor: Cursor) -> psycopg2.Error | None:
    make: sql.Composable = sql.SQL("create schema auth")
    if roles.may_act_as(cursor, roles.OWNER):
        make = sql.SQL("create schema auth authorization {}").format(sql.Identifier(roles.OWNER))
    refused = roles.attempt(cursor, make)
    if refused is None:
        for role in _existing_clients(cursor):
            roles.attempt(cursor, sql.SQL("grant usage on schema auth to {}").format(sql.Identifier(role)))
    return refused


def _ensure_function(cursor: Cursor, name: str, type_: str, body: str, comment: str) -> ObjectReport:
    shown = f"{SCHEMA}.{name}()"
    cursor.execute(
        "select exists (select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = %s and p.proname = %s and p.pronargs = 0)",
        (SCHEMA, name),
    )
    if scalar(cursor):
        return ObjectReport("function", shown, "exists")
    make = sql.SQL("create function auth.{}() returns {} language sql stable as {}").format(
        sql.Identifier(name), sql.SQL(type_), sql.Literal(body)
    )
    refused = roles.attempt(cursor, make)
    if refused is not None:
        return ObjectReport("function", shown, "missing", _cause(refused), make.as_string(cursor))
    roles.attempt(
        cursor, sql.SQL("comment on function auth.{}() is {}").format(sql.Identifier(name), sql.Literal(comment))
    )
    for role in _existing_clients(cursor):
        grant = sql.SQL("grant execute on function auth.{}() to {}")
        roles.attempt(cursor, grant.format(sql.Identifier(name), sql.Identifier(role)))
    return ObjectReport("function", shown, "created")


def _existing_clients(cursor: Cursor) -> list[str]:
    cursor.execute(
        "select r.rolname from pg_catalog.pg_roles r where r.rolname = any(%s::name[])", (list(roles.CLIENT_ROLES),)
    )
    return [role for (role,) in cursor.fetchall()]


def _lacks(cursor: Cursor, role: str) -> Iterator[ObjectReport]:
    """What stands between a role and functions in somebody else's schema: it is his to let anybody in."""
    cursor.execute(
        "select pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')"
        "  from pg_catalog.pg_roles r, pg_catalog.pg_namespace n where r.rolname = %s and n.nspname = %s",
        (role, SCHEMA),
    )
    row = cursor.fetchone()
    if row is not None and not row[0]:
        grant = sql.SQL("grant usage on schema auth to {}").format(sql.Identifier(role)).as_string(cursor)
        yield ObjectReport("grant", f"usage on {SCHEMA} to {role}", "missing", "the schema is somebody else's", grant)


def _cause(error: psycopg2.Error) -> str:
    return (error.diag.message_primary or str(error)).strip()
