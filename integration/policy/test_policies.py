"""Policies are loaded as PostgreSQL would apply them: to whom, from which table, looking at which columns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase
from walstream.model import Catalog, Relation
from walstream.policy import Ask, Protection, Viewer, guard
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.policies import load_protections
from walstream.shell.database.postgres import connect

SUFFIXES = ("reader", "writer", "heir", "owner", "service", "root")


@pytest.fixture
def roles(database: TestDatabase) -> Iterator[dict[str, str]]:
    """Roles belong to the server, so each test has its own. ``heir`` has the privileges of ``reader``."""
    names = {suffix: f"{database.name}_{suffix}" for suffix in SUFFIXES}
    for suffix, name in names.items():
        options = {"service": "bypassrls", "root": "superuser"}.get(suffix, "")
        database.execute(f"create role {name} {options}")
    database.execute(f"grant {names['reader']} to {names['heir']}")
    yield names
    database.execute(f"drop owned by {', '.join(names.values())}; drop role {', '.join(names.values())}")


@pytest.fixture
def connection(database: TestDatabase) -> Iterator[PgConnection]:
    opened = connect(database.dsn, application_name="policies", search_path="")
    yield opened
    opened.close()


def protections(connection: PgConnection, roles: dict[str, str], table: str) -> dict[str, Protection]:
    found = load_protections(connection, list(roles.values()), [("public", table)])
    return {suffix: found[name, "public", table] for suffix, name in roles.items() if (name, "public", table) in found}


def names(protection: Protection) -> list[str]:
    return [policy.name for policy in protection.policies]


def test_nobody_is_held_back_by_a_table_without_row_level_security(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute("create table t (a int); create policy p on t using (a > 0)")
    assert protections(connection, roles, "t") == {}
    assert load_protections(connection, ["nobody at all", "x" * 99], [("public", "t"), ("no", "such\0")]) == {}


def test_roles_that_bypass_and_owners_are_not_held_back_unless_forced(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute(
        "create table t (a int); alter table t enable row level security;"
        f"alter table t owner to {roles['owner']}; grant {roles['owner']} to {roles['writer']}"
    )
    found = protections(connection, roles, "t")
    assert found == dict.fromkeys(("reader", "heir"), Protection("public", "t", ()))
    database.execute("alter table t force row level security")
    assert protections(connection, roles, "t").keys() == {"reader", "heir", "owner", "writer"}


def test_policies_for_select_apply_to_their_roles_and_those_with_their_privileges(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute(
        "create table t (a int, b text); alter table t enable row level security;"
        f"create policy of_reader on t for select to {roles['reader']} using (a > 0);"
        f"create policy of_writer on t to {roles['writer']}, {roles['owner']} using (a > 1);"
        "create policy everyone on t as restrictive using (b is null);"
        "create policy inserting on t for insert with check (true);"
        "create policy updating on t for update using (true);"
        "create policy deleting on t for delete using (true);"
        "create policy unconditional on t for all with check (true);"
    )
    found = protections(connection, roles, "t")
    assert names(found["reader"]) == names(found["heir"]) == ["everyone", "of_reader"]
    assert names(found["writer"]) == names(found["owner"]) == ["everyone", "of_writer"]
    everyone, of_reader = found["reader"].policies
    assert (everyone.permissive, of_reader.permissive) == (False, True)
    assert (everyone.condition, of_reader.condition) == ("(b IS NULL)", "(a > 0)")
    assert (everyone.columns, of_reader.columns) == ((("b", "text"),), (("a", "integer"),))
    assert found["reader"] == found["heir"]


def test_a_partition_is_read_through_its_root(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute(
        "create schema s; create table s.root (a int, b int) partition by list (a);"
        "create table leaf partition of s.root for values in (1);"
        "alter table s.root enable row level security; create policy p on s.root using (b = 1)"
    )
    found = protections(connection, roles, "leaf")["reader"]
    assert (found.schema, found.table, names(found)) == ("s", "root", ["p"])
    database.execute(
        "alter table s.root disable row level security; alter table leaf enable row level security;"
        "create policy p on leaf using (false)"
    )
    assert protections(connection, roles, "leaf") == {}


def test_columns_are_those_of_the_row_also_inside_sub_selects(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute(
        'create table members (team int, who text); create table docs ("Odd :name" int, gone int, team int,'
        ' title varchar(7) collate "C", price numeric(4,2)); alter table docs drop column gone;'
        "alter table docs enable row level security;"
        "create policy p on docs using (exists (select 1 from members m where m.team = docs.team and"
        ' m.who in (select title from (select 1) as ":x" (one) where "Odd :name" = 1)));'
        "create policy q on docs using (price > 1)"
    )
    protection = protections(connection, roles, "docs")["reader"]
    p, q = protection.policies
    assert p.columns == (
        ("Odd :name", "integer"),
        ("team", "integer"),
        ("title", 'character varying(7) COLLATE pg_catalog."C"'),
    )
    catalog = Catalog()
    catalog.load(load_relations(connection, [("public", "docs")]))
    info = catalog.relations["public", "docs"]
    assert info is not None
    catalog.load(types=load_types(connection, [column.type_oid for column in info.columns]))
    answer = guard(protection, Viewer("reader", "{}"), Relation("public", "docs", info.columns), catalog)
    assert isinstance(answer, Ask)
    assert q.condition in answer.condition
    declared = ", ".join('"{}" {}'.format(*column) for column in answer.columns)
    with connection.cursor() as cursor:
        cursor.execute(f"select {answer.condition} from json_to_record('{{\"price\": 1.5}}') as docs ({declared})")
        assert cursor.fetchall() == [(True,)]


@pytest.mark.parametrize("condition", ["docs is not null", "tableoid = 1", "xmin is null", "exists (select docs)"])
def test_what_only_a_stored_row_has_is_a_problem(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str], condition: str
) -> None:
    database.execute(
        "create table docs (a int); alter table docs enable row level security;"
        f"create policy p on docs using ({condition})"
    )
    (policy,) = protections(connection, roles, "docs")["reader"].policies
    assert policy.problem == "system_column"


UID = "select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid"


@pytest.mark.parametrize(
    ("function", "understood"),
    [
        (f"create function who() returns uuid language sql stable as $${UID}$$", True),
        (f"create function who() returns uuid language sql security definer as $$\n{UID} ;$$", True),
        (f"create function who() returns uuid language sql stable set search_path = '' as $${UID}$$", True),
        (f"create function who() returns uuid language sql stable set search_path = pg_catalog as $${UID}$$", True),
        (f"create function who() returns uuid language sql stable set search_path = public as $${UID}$$", False),
        (f"create function who() returns uuid language sql stable set role = postgres as $${UID}$$", False),
        (f"create function who() returns uuid language plpgsql stable as $$ begin return ({UID}); end $$", False),
        (f"create function who() returns uuid language sql stable return ({UID})", False),
        ("create function who() returns uuid language sql stable as 'select null::uuid'", False),
    ],
)
def test_functions_are_understood_by_their_bodies(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str], function: str, understood: bool
) -> None:
    database.execute(
        f"{function}; create table t (a uuid); alter table t enable row level security;"
        "create policy p on t using (a = who())"
    )
    (policy,) = protections(connection, roles, "t")["reader"].policies
    assert (policy.formula is not None) is understood


def test_a_function_that_a_role_may_not_call_is_left_to_postgresql(
    database: TestDatabase, connection: PgConnection, roles: dict[str, str]
) -> None:
    database.execute(
        f"create function who() returns uuid language sql stable as $${UID}$$; create table t (a uuid);"
        "alter table t enable row level security; create policy p on t using (a = who());"
        f"revoke execute on function who() from public; grant execute on function who() to {roles['writer']}"
    )
    found = protections(connection, roles, "t")
    assert [found[role].policies[0].formula is not None for role in ("reader", "writer")] == [False, True]
    database.execute("create or replace function who() returns uuid language sql stable as 'select null::uuid'")
    assert protections(connection, roles, "t")["writer"].policies[0].formula is None
