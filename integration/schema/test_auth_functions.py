"""The functions that policies are written with: made where they are missing, and never replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.policy.definitions import term_of
from walstream.shell.commands import migrate
from walstream.shell.database.auth_functions import FUNCTIONS
from walstream.shell.database.reports import ObjectReport

TYPES = {"uuid": 2950, "text": 25, "jsonb": 3802}
ADA = "11111111-1111-1111-1111-111111111111"


def init(database: TestDatabase) -> dict[str, ObjectReport]:
    connection = database.connect()
    reports = migrate.apply(connection)
    connection.close()
    return {line.name: line for line in reports if line.name == "auth" or line.name.startswith(("auth.", "usage"))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_policies_with_them_are_understood(name: str) -> None:
    type_, body, _ = FUNCTIONS[name]
    assert term_of(body, TYPES[type_]) is not None


def test_they_are_made_once_and_say_who_asks(database: TestDatabase) -> None:
    made, again = init(database), init(database)
    assert {line.state for line in made.values()} == {"created"}
    assert set(made) == {"auth", "auth.uid()", "auth.role()", "auth.jwt()"}
    assert {line.state for line in again.values()} == {"exists"}
    for role in ("anon", "authenticated", "service_role"):
        found = database.query(
            f"begin; set local role {role};"
            "select set_config('request.jwt.claims', '"
            + json.dumps({"sub": ADA, "role": role, "team": 7})
            + "', true);"
            "select auth.uid()::text, auth.role(), auth.jwt() ->> 'team'"
        )
        database.execute("rollback")
        assert found == [(ADA, role, "7")]
    assert database.query("select auth.uid(), auth.role(), auth.jwt()") == [(None, None, None)]


def test_what_is_there_is_never_replaced(database: TestDatabase) -> None:
    database.execute("create schema auth; create function auth.uid() returns text language sql as $$ select 'mine' $$")
    found = init(database)
    assert found["auth.uid()"].state == "exists"
    assert found["auth.role()"].state == "created"
    assert database.scalar("select auth.uid()") == "mine"
    assert found["usage on auth to anon"].repair == 'grant usage on schema auth to "anon"'
    assert not database.scalar("select has_schema_privilege('anon', 'auth', 'USAGE')")


def test_a_schema_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path / "server") as own, fresh_database(own) as database:
        init(database)
        database.execute(
            "drop schema auth cascade; create role gotrue; create schema auth authorization gotrue;"
            "create role ops login createrole; grant walstream_owner, anon, authenticated, service_role to ops;"
        )
        connection = database.connect()
        connection.cursor().execute("set session authorization ops")
        found = {line.name: line for line in migrate.apply(connection)}
        connection.close()
        assert found["auth.uid()"].state == "missing"
        assert found["auth.uid()"].repair.startswith('create function auth."uid"()')
        assert found["auth"].state == "exists"
        assert database.scalar("select count(*) from pg_proc where pronamespace = 'auth'::regnamespace") == 0
