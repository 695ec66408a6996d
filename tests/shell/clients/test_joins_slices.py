"""Joins that are answered together are settled a few at a time: nobody misses what happens between."""

from __future__ import annotations

import pytest
from trio.testing import wait_all_tasks_blocked

from tests.shell.clients.test_joins import ALL, scene
from tests.shell.joins_support import Owner, Rig
from walstream.shell.clients.joins import SLICE_JOINS


def test_joins_are_settled_in_slices_and_all_get_what_is_routed_between(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(rig: Rig) -> None:
        owners = [Owner(rig) for _ in range(3 * SLICE_JOINS - 1)]
        commits: dict[int, int] = {}  # by how many were answered before
        flush = rig.fanout.flush

        async def write() -> None:
            await flush()
            count = sum(1 for owner in owners if owner.outcomes)
            if count < len(owners) and count not in commits:
                commits[count] = 0
                commits[count] = await rig.commit_row()

        monkeypatch.setattr(rig.fanout, "flush", write)  # of all that is done between slices
        for owner in owners:
            rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert list(commits) == [SLICE_JOINS, 2 * SLICE_JOINS]
        assert rig.world.trips == 1
        got = [[frame.commit for frame in owner.frames] for owner in owners]
        assert got == [list(commits.values())] * len(owners)

    scene(main)


@pytest.mark.parametrize("event", ["gap", "rights"])
def test_what_happens_between_slices_makes_the_rest_ask_again(event: str) -> None:
    async def main(rig: Rig) -> None:
        owners = [Owner(rig) for _ in range(2 * SLICE_JOINS)]

        def happen(serial: int) -> None:
            owners[SLICE_JOINS - 1].on_ready = lambda serial: None
            if event == "gap":
                rig.joins.gap("slot_lost")
            else:
                rig.access.update({}, (), [("public", "things")])

        owners[SLICE_JOINS - 1].on_ready = happen
        for owner in owners:
            rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert all(owner.outcomes for owner in owners)
        assert rig.world.trips == 2

    scene(main)


def test_a_gap_while_the_database_is_asked_makes_joins_ask_again() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)

        def happen() -> None:
            rig.world.on_answer = lambda: None
            rig.joins.gap("slot_lost")

        rig.world.on_answer = happen
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert owner.is_subscribed(serial)
        assert rig.world.trips == 2

    scene(main)


def test_a_gap_may_concern_some_items_only() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        other = rig.ask(owner, ALL)
        concerned = rig.ask(owner, ALL.replace(b'"*"', b'"DELETE"'))
        await wait_all_tasks_blocked()

        def reasons(serial: int) -> list[str]:
            return [details["reason"] for details in owner.details.get(serial, []) if "reason" in details]

        assert rig.joins.gap("plan_changed", lambda wish: wish.item.event == "DELETE") == 1
        assert (reasons(other), reasons(concerned)) == ([], ["plan_changed"])
        assert rig.joins.gap("slot_lost") == 2
        assert (reasons(other), reasons(concerned)) == (["slot_lost"], ["plan_changed", "slot_lost"])

    scene(main)
