"""Rights are those that PostgreSQL would let a role read by; policies come along with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase
from walstream.shell.database.access import RoleFacts, TableRight, load_rights, load_roles

SUFFIXES = ("reader", "other", "service", "root", "daemon", "inherits")
OPEN, CLOSED = TableRight(True), TableRight(False)


@pytest.fixture
def roles(any_database: TestDatabase) -> Iterator[dict[str, str]]:
    """Roles belong to the server, so each test has its own."""
    names = {suffix: f"{any_database.name}_{suffix}" for suffix in SUFFIXES}
    for suffix, name in names.items():
        options = {"service": "bypassrls", "root": "superuser", "daemon": "login"}.get(suffix, "")
        any_database.execute(f"create role {name} {options}")
    any_database.execute(
        f"grant {names['reader']} to {names['daemon']}; grant {names['reader']} to {names['inherits']}"
    )
    yield names
    any_database.execute(f"drop owned by {', '.join(names.values())}; drop role {', '.join(names.values())}")


def rights(
    connection: PgConnection, names: dict[str, str], table: str, schema: str = "public"
) -> dict[str, TableRight]:
    found = load_rights(connection, list(names.values()), [(schema, table)])
    return {suffix: found[name, schema, table] for suffix, name in names.items() if (name, schema, table) in found}


def test_who_may_select_sees_changes_and_who_bypasses_sees_all(
    any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]
) -> None:
    any_database.execute("create table t (a int, b int)")
    assert rights(facts, roles, "t") == {
        "reader": CLOSED, "other": CLOSED, "service": OPEN, "root": OPEN, "daemon": CLOSED, "inherits": CLOSED
    }  # fmt: skip
    any_database.execute(f"grant select on t to {roles['reader']}; grant select (a) on t to {roles['other']}")
    found = rights(facts, roles, "t")
    assert (found["reader"], found["inherits"]) == (OPEN, OPEN)
    assert found["other"] == TableRight(True, frozenset({"a"}))
    any_database.execute(f"revoke select on t from {roles['reader']}; grant insert on t to {roles['reader']}")
    assert rights(facts, roles, "t")["reader"] == CLOSED


def test_some_columns_are_enough_if_the_key_is_among_them(
    any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]
) -> None:
    any_database.execute(
        "create table t (a int, b int, c int, primary key (a, b));"
        f"grant select (a, c) on t to {roles['reader']}; grant select (a, b) on t to {roles['other']}"
    )
    found = rights(facts, roles, "t")
    assert not found["reader"].allowed, "a row without its key is of no use"
    assert found["other"] == TableRight(True, frozenset({"a", "b"}))
    any_database.execute("alter table t drop column b cascade")
    assert rights(facts, roles, "t")["reader"] == TableRight(True, frozenset({"a", "c"}))
    assert rights(facts, roles, "t")["service"] == OPEN


def test_policies_stand_before_all_but_who_bypasses_them(
    any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]
) -> None:
    any_database.execute(
        f"create table t (a int); grant select on t to public; alter table t enable row level security;"
        f"create policy everyone on t using (true); alter table t owner to {roles['other']}"
    )
    found = rights(facts, roles, "t")
    assert {suffix for suffix, right in found.items() if right.protection is None} == {"other", "service", "root"}
    assert all(right.allowed for right in found.values())
    assert found["reader"].protection == found["daemon"].protection
    any_database.execute("alter table t force row level security")
    assert rights(facts, roles, "t")["other"].protection == found["reader"].protection
    any_database.execute("alter table t disable row level security")
    assert set(rights(facts, roles, "t").values()) == {OPEN}


def test_the_schema_has_to_be_open_too(any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]) -> None:
    any_database.execute(
        f"create schema inside; create table inside.t (a int); grant select on inside.t to {roles['reader']}"
    )
    assert rights(facts, roles, "t", "inside")["reader"] == CLOSED
    any_database.execute(f"grant usage on schema inside to {roles['reader']}")
    assert rights(facts, roles, "t", "inside")["reader"] == OPEN


def test_partitions_are_read_by_the_rights_of_their_root(
    any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]
) -> None:
    any_database.execute(
        "create schema parts; create table root (a int) partition by range (a);"
        "create table middle partition of root for values from (0) to (9) partition by range (a);"
        "create table parts.leaf partition of middle default;"
        f"grant select on root to {roles['reader']};"
        f"grant usage on schema parts to {roles['other']}; grant select on parts.leaf to {roles['other']}"
    )
    for schema, table in (("public", "root"), ("public", "middle"), ("parts", "leaf")):
        found = rights(facts, roles, table, schema)
        assert (found["reader"], found["other"]) == (OPEN, CLOSED), table
    any_database.execute("alter table parts.leaf enable row level security")
    assert rights(facts, roles, "leaf", "parts")["reader"] == OPEN
    any_database.execute("alter table root enable row level security")
    protection = rights(facts, roles, "leaf", "parts")["reader"].protection
    assert protection is not None
    assert (protection.schema, protection.table) == ("public", "root")


def test_only_tables_have_rights(any_database: TestDatabase, facts: PgConnection, roles: dict[str, str]) -> None:
    any_database.execute(
        "create view v as select 1 as a; create materialized view m as select 1 as a; create sequence s;"
        "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;"
        "create foreign table f (a int) server nowhere; create type c as (a int);"
        "grant select on v, m, f to public; create table t (a int); create index i on t (a)"
    )
    for name in ("v", "m", "s", "f", "c", "i", "nothing", "t" * 70, "nul\0", "\ud800"):
        assert rights(facts, roles, name) == {}, name
    assert load_rights(facts, [], [("public", "t")]) == {}
    assert load_rights(facts, list(roles.values()), []) == {}
    assert load_rights(facts, ["nobody", "nul\0", "\ud800", roles["reader"] + "x" * 60], [("public", "t")]) == {}


def test_roles_are_what_the_daemon_may_act_as(any_database: TestDatabase, roles: dict[str, str]) -> None:
    asked = [*roles.values(), "nobody", "nul\0", "\ud800", "r" * 100]
    connection = any_database.connect(user=roles["daemon"])
    found = load_roles(connection, asked)
    connection.close()
    assert {suffix: found[name] for suffix, name in roles.items()} == {
        "reader": RoleFacts(bypasses_rls=False, superuser=False, member=True),
        "other": RoleFacts(bypasses_rls=False, superuser=False, member=False),
        "service": RoleFacts(bypasses_rls=True, superuser=False, member=False),
        "root": RoleFacts(bypasses_rls=False, superuser=True, member=False),
        "daemon": RoleFacts(bypasses_rls=False, superuser=False, member=True),
        "inherits": RoleFacts(bypasses_rls=False, superuser=False, member=False),
    }
    assert len(found) == len(roles)
    connection = any_database.connect()
    assert all(role.member for role in load_roles(connection, list(roles.values())).values())
    assert load_roles(connection, []) == {}
    connection.close()


def test_a_daemon_without_rights_of_its_own_can_ask(any_database: TestDatabase, roles: dict[str, str]) -> None:
    any_database.execute(f"create table t (a int); grant select on t to {roles['reader']}")
    connection = any_database.connect(user=roles["daemon"])
    assert rights(connection, roles, "t")["reader"] == OPEN
    connection.close()
