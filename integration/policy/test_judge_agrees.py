"""The judge shows exactly the rows that PostgreSQL shows: over random policies, rows and claims, whatever the guard.

What may differ is in doubt, and has a reason: a null that may stand for more than one value, or PostgreSQL's own error.
``POLICY_SEED`` chooses other cases, ``JUDGE_CASES`` how many.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from integration.fixtures.postgres import TestDatabase
from integration.policy.asking import Asking, asking
from integration.policy.cases import LOOSE
from integration.policy.test_guards_agree import ROWS, SEED, VIEWERS, World, policies
from walstream.policy import Ask, Viewer
from walstream.policy.guard import _ask as question
from walstream.shell.database.postgres import connect

CASES = int(os.environ.get("JUDGE_CASES", "10000"))


@pytest.fixture
def world(database: TestDatabase) -> Iterator[World]:
    connection = connect(database.dsn, application_name="policies", search_path="")
    made = World(database, connection, random.Random(SEED + 1))
    yield made
    roles = ", ".join(made.roles.values())
    made.execute(f"drop owned by {roles}; drop role {roles}")
    connection.close()


def test_the_judge_shows_what_postgresql_shows(world: World, database: TestDatabase) -> None:
    count: Counter[object] = Counter()

    async def work(asked: Asking) -> None:
        while count["rows"] < CASES:
            protections = world.establish(policies(world))
            for _ in range(VIEWERS):
                viewer = world.viewer()
                protection = protections[viewer.role]
                if any(policy.permissive for policy in protection.policies):
                    await compare(world, asked, viewer, question(protection), count)

    asking(database.dsn, work, world.catalog)
    print(dict(count))
    assert count["visible"] > count["rows"] * 0.05
    assert count["with errors"] < count["viewers"] * 0.3


async def compare(world: World, asked: Asking, viewer: Viewer, ask: Ask, count: Counter[object]) -> None:
    found = await asked.visible(viewer, ask, world.relation, world.rows)
    truth = world.truth(viewer)
    count["viewers"] += 1
    count["with errors"] += isinstance(truth, str)
    for number in range(ROWS):
        expected = (
            world.seen(viewer, "select id from public.docs where id = %s", (number,))
            if isinstance(truth, str)
            else truth & {number}
        )
        shown = {number} if found[number] else set()
        count["rows"] += 1
        count["visible"] += found[number]
        if isinstance(expected, str):
            # Which part of a condition comes first is the planner's choice: a row may get by the failing one.
            count["failing", "shown" if shown else await doubt(asked, viewer, ask, world, number)] += 1
            continue
        if shown == expected:
            continue
        assert not shown, (viewer, ask, number)
        reason = await doubt(asked, viewer, ask, world, number)
        count["in doubt", reason] += 1
        row = world.rows[number]
        assert reason in ("not_a_number", "lossy_value", "policy_error"), (viewer, ask, number, reason)
        assert any(b"null" in (row[world.relation.positions[name]] or b"") for name, _ in ask.columns if name in LOOSE)


async def doubt(asked: Asking, viewer: Viewer, ask: Ask, world: World, number: int) -> str:
    """The reason for which one row is in doubt, "" if it is not."""
    before = asked.counted()
    await asked.visible(viewer, ask, world.relation, [world.rows[number]])
    return next((reason for reason, rows in asked.counted().items() if rows > before.get(reason, 0)), "")
