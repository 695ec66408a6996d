"""Guards let through exactly the rows that PostgreSQL shows: over random policies, rows and claims.

``POLICY_CASES=100000 scripts/test integration/policy/test_guards_agree.py`` compares as many; ``POLICY_SEED`` chooses
others.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal

import psycopg2
import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.cells import identifier, stored_rows
from integration.fixtures.postgres import TestDatabase
from integration.policy.cases import (
    LOOSE,
    ROLES,
    SCHEMA,
    TEXTS,
    UUIDS,
    Condition,
    claims,
    condition,
    quote,
)
from integration.policy.cases import row as random_row
from walstream.model import Catalog, Relation, Row
from walstream.policy import Ask, Guard, Protection, Sifted, Viewer, guard
from walstream.policy.claims import Number, session_settings
from walstream.policy.definitions import BODIES
from walstream.policy.terms import Document, Scalar, Session, Unsure
from walstream.predicate import compile  # noqa: A004
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.policies import load_protections
from walstream.shell.database.postgres import connect

CASES = int(os.environ.get("POLICY_CASES", "40000"))
SEED = int(os.environ.get("POLICY_SEED", "1"))
ROWS = 24
VIEWERS = 6
TYPES = {16: "boolean", 25: "text", 114: "json", 2950: "uuid", 3802: "jsonb"}


class World:
    """A table of many columns under row-level security, its rows as the decoders deliver them."""

    def __init__(self, database: TestDatabase, connection: PgConnection, rng: random.Random) -> None:
        self.connection = connection
        self.rng = rng
        self.roles = {name: f"{database.name}_{name}" for name in ROLES}
        self.execute(SCHEMA)
        for role in self.roles.values():
            self.execute(
                f"create role {role}; grant usage on schema auth, public to {role};"
                f"grant select on public.docs, public.members to {role}"
            )
        for team in TEXTS[:5]:
            self.execute(f"insert into public.members values ({quote(team)}, '{rng.choice(UUIDS)}')")
        for number in range(ROWS):
            values = ["null" if value is None else quote(value) for value in random_row(rng).values()]
            self.execute(f"insert into public.docs values ({number}, {', '.join(values)})")
        self.catalog = Catalog()
        self.catalog.load(load_relations(connection, [("public", "docs")]))
        info = self.catalog.relations["public", "docs"]
        assert info is not None
        self.catalog.load(types=load_types(connection, [column.type_oid for column in info.columns]))
        self.relation = Relation("public", "docs", info.columns, info.primary_key, oid=info.oid)
        self.rows = self._rows()

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _rows(self) -> list[Row]:
        return stored_rows(self.execute, self.relation, self.catalog, "public.docs order by id")

    def viewer(self) -> Viewer:
        return Viewer(self.rng.choice(list(self.roles.values())), claims(self.rng))

    def establish(self, conditions: Sequence[tuple[str, str, Condition]]) -> dict[str, Protection]:
        """Have these policies and no others: (kind, roles, condition). Returns what is loaded for each role."""
        names = [str(name) for (name,) in self.execute("select polname from pg_policy order by polname")]
        drops = [f"drop policy {name} on public.docs;" for name in names]
        makes = [
            f"create policy p{number} on public.docs as {kind} to {to} using ({self._with_roles(made.sql)});"
            for number, (kind, to, made) in enumerate(conditions)
        ]
        self.execute("".join((*drops, *makes)))
        found = load_protections(self.connection, list(self.roles.values()), [("public", "docs")])
        return {role: found[role, "public", "docs"] for role in self.roles.values()}

    def _with_roles(self, text: str) -> str:
        for name, role in self.roles.items():
            text = text.replace(quote(name), quote(role))
        return text

    def seen(self, viewer: Viewer, statement: str, parameters: Sequence[object] = ()) -> set[int] | str:
        """The numbers that a statement returns as the viewer, or PostgreSQL's refusal."""
        with self.connection.cursor() as cursor:
            try:
                cursor.execute("begin")
                for name, value in session_settings(viewer).items():
                    cursor.execute("select pg_catalog.set_config(%s, %s, true)", (name, value))
                cursor.execute(statement, parameters)
                return {number for (number,) in cursor.fetchall()}
            except (psycopg2.Error, ValueError, UnicodeError) as error:
                return str(error)
            finally:
                cursor.execute("rollback")

    def truth(self, viewer: Viewer) -> set[int] | str:
        return self.seen(viewer, "select id from public.docs")

    def asked(self, viewer: Viewer, ask: Ask) -> tuple[set[int] | str, set[int]]:
        """The rows for which the question's answer is yes, and those in doubt."""
        names = [name for name, _ in ask.columns]
        positions = [self.relation.positions[name] for name in names]
        loose = [self.relation.positions[name] for name in LOOSE.intersection(names)]
        doubts = {number for number, row in enumerate(self.rows) if any(b"null" in (row[at] or b"") for at in loose)}
        members = [
            ",".join(
                f"{json.dumps(name)}:{(row[at] or b'null').decode()}" for name, at in zip(names, positions, strict=True)
            )
            for row in self.rows
        ]
        declared = [f"{identifier(name)} {written}" for name, written in ask.columns] or ["none integer"]
        statement = (
            f"select at - 1 from rows from (json_to_recordset(%s) as ({', '.join(declared)})) with ordinality"
            f" as {identifier(ask.table)} ({', '.join([*map(identifier, names or ['none']), 'at'])})"
            f" where {ask.condition.replace('%', '%%')}"
        )
        rows = f"[{','.join(f'{{{row}}}' for row in members)}]"
        return self.seen(viewer, statement, (rows,)), doubts


@pytest.fixture
def world(database: TestDatabase) -> Iterator[World]:
    connection = connect(database.dsn, application_name="policies", search_path="")
    made = World(database, connection, random.Random(SEED))
    yield made
    roles = ", ".join(made.roles.values())
    made.execute(f"drop owned by {roles}; drop role {roles}")
    connection.close()


def visible(world: World, found: Guard) -> set[int]:
    if isinstance(found, bool):
        return set(range(ROWS)) if found else set()
    assert isinstance(found, Sifted)
    predicate = compile(found.expression, world.relation, world.catalog, found.literals)
    return {number for number, row in enumerate(world.rows) if predicate(row)}


def policies(world: World) -> list[tuple[str, str, Condition]]:
    rng = world.rng
    kinds = rng.choices(("permissive", "restrictive"), (3, 1), k=rng.choice((1, 1, 2, 3)))
    roles = list(world.roles.values())
    return [(kind, rng.choice(("public", "public", *roles)), condition(rng)) for kind in kinds]


def test_guards_let_through_what_postgresql_shows(world: World) -> None:
    count: Counter[str] = Counter()
    while count["cases"] < CASES:
        made = policies(world)
        protections = world.establish(made)
        for role, protection in protections.items():
            for policy in protection.policies:
                known = made[int(policy.name[1:])][2]
                assert (policy.formula is not None) == known.known, (role, known.sql, policy.condition)
                count["understood" if known.known else "not understood"] += 1
        for _ in range(VIEWERS):
            viewer = world.viewer()
            protection = protections[viewer.role]
            found = guard(protection, viewer, world.relation, world.catalog)
            compare(world, viewer, protection, found, count)
            count["cases"] += ROWS
    print(dict(count))
    assert count["sifted"] > count["viewers"] * 0.1
    assert count["decided"] > count["viewers"] * 0.1
    assert count["asked in doubt"] < count["viewers"] * 0.2


def compare(world: World, viewer: Viewer, protection: Protection, found: Guard, count: Counter[str]) -> None:
    truth = world.truth(viewer)
    case = (viewer, [(policy.permissive, policy.condition) for policy in protection.policies], found, truth)
    count["viewers"] += 1
    if not isinstance(found, Ask):
        if isinstance(truth, str):
            # A condition that is not understood fails, and those that are understood decide without it.
            assert any(policy.formula is None for policy in protection.policies), case
            count["decided before an error"] += 1
            return
        count["decided" if isinstance(found, bool) else "sifted"] += 1
        assert visible(world, found) == truth, case
        return
    answered, doubts = world.asked(viewer, found)
    count["asked"] += 1
    if isinstance(truth, str) or isinstance(answered, str):
        count["asked in doubt"] += 1
        count[f"asked: error {isinstance(truth, str)}, {isinstance(answered, str)}"] += 1
        return
    count["asked with known formulas"] += all(policy.formula is not None for policy in protection.policies)
    assert answered - doubts == truth - doubts, case


def test_every_known_body_means_what_it_says(world: World) -> None:
    bodies = list(BODIES.items())
    for number, (body, term) in enumerate(bodies):
        world.execute(
            f"create function public.f{number}() returns {TYPES[term.type]} language sql stable as {quote(body)}"
        )
    unsure = 0
    for _ in range(CASES // 500):
        viewer = Viewer(world.viewer().role, claims(world.rng))
        for number in world.rng.sample(range(len(bodies)), 12):
            body, term = bodies[number]
            expected = value(world, viewer, f"public.f{number}()")
            try:
                found = printed(term(Session(viewer)))
            except Unsure:
                unsure += expected[0]
                continue
            assert (True, found) == expected, (viewer, body)
    assert unsure < CASES // 500 * 3, "mostly where PostgreSQL raises an error, or a key comes twice"


def value(world: World, viewer: Viewer, expression: str) -> tuple[bool, object]:
    """(True, the expression's text), or (False, the error)."""
    with world.connection.cursor() as cursor:
        try:
            cursor.execute("begin")
            for name, setting in session_settings(viewer).items():
                cursor.execute("select pg_catalog.set_config(%s, %s, true)", (name, setting))
            cursor.execute(f"select to_jsonb({expression})::text")
            text = cursor.fetchall()[0][0]
            return True, None if text is None else json.loads(text, parse_int=Decimal, parse_float=Decimal)
        except (psycopg2.Error, ValueError, UnicodeError) as error:
            return False, str(error)
        finally:
            cursor.execute("rollback")


def printed(found: Scalar) -> object:
    return plain(found.value) if isinstance(found, Document) else found


def plain(found: object) -> object:
    """A document as Python's own reader of JSON has it."""
    if isinstance(found, dict):
        return {key: plain(member) for key, member in found.items()}
    if isinstance(found, list):
        return [plain(item) for item in found]
    return Decimal(found.text) if isinstance(found, Number) else found
