"""The word of a gap: between whole transactions, and with a position that goes on after it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shell.clients.test_joins import ALL, scene
from tests.shell.fanout_support import changes
from tests.shell.joins_support import Owner, Rig, World
from walstream.channel.effects import SUBSCRIBED
from walstream.history.lineage import Lineage
from walstream.history.plan_log import PlanLog
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction
from walstream.shell.clients.starts import GAP, RESUMED
from walstream.shell.delivery import fanout as fanout_module


class Flushed(World):
    """A server that has written far more than was read."""

    @property
    def snapshot(self) -> Snapshot:
        return super().snapshot._replace(flush_lsn=1 << 40)


def since(position: str) -> bytes:
    return ALL.replace(b"}", b',"since":"%b"}' % position.encode())


@pytest.mark.parametrize("reason", ["slot_lost", "poison_skipped", "plan_changed"])
def test_a_gap_is_told_once_to_whoever_comes_back_with_its_position(reason: str) -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        await rig.commit_row()
        before = f"00000000.0.{rig.commit - 1:x}.0"
        if reason == "slot_lost":
            rig.commit = 500
            rig.ring.restart(Lineage("00000000"), rig.commit, lost="slot_lost")
        elif reason == "poison_skipped":
            rig.world.replanned.append(PlanLog(rig.ring).left_out(rig.commit + 5, ("public", "things")))
        rig.joins.gap(reason)
        details = owner.details[serial][-1]
        assert (details["event"], details["reason"]) == ("gap", reason)
        late = rig.ask(owner, since(details["position"]))
        await wait_all_tasks_blocked()
        assert owner.told[late] == [("ok", RESUMED)]
        if reason != "plan_changed":
            again = rig.ask(owner, since(before))
            await wait_all_tasks_blocked()
            assert owner.told[again] == [("ok", GAP)]
            assert owner.details[again][0]["reason"] == reason
            once_more = rig.ask(owner, since(owner.details[again][0]["position"]))
            await wait_all_tasks_blocked()
            assert owner.told[once_more] == [("ok", RESUMED)]

    scene(main, Flushed())


def test_the_rest_of_a_transaction_that_is_under_way_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what waits behind it, which is older than the gap; what is read afterwards comes whole."""

    async def main(rig: Rig) -> None:
        owner, other = Owner(rig), Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert owner.accepted(serial).message == SUBSCRIBED
        rig.ask(other, ALL.replace(b'"*"', b'"INSERT"'))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            rig.commit += 10
            rows = changes(*range(10))
            large = Transaction(rig.world.xid, Lsn(rig.commit), 0, rows, size=1)
            rig.fanout.route(rig.ring.append(large, 0), large, spilled=True)
            behind = await rig.commit_row()
            while not owner.frames:
                await trio.lowlevel.checkpoint()
            told = len(owner.frames)
            assert told < len(rows)
            assert rig.joins.gap("slot_lost", lambda wish: wish.item.event == "*") == 1
            whole = await rig.commit_row()
            await wait_all_tasks_blocked()
            assert [frame.commit for frame in owner.frames[told:]] == [whole]
            assert [frame.commit for frame in other.frames] == [large.commit_lsn] * len(rows) + [behind, whole]
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(fanout_module, "SLICE_CHANGES", 2)
    scene(main)


def test_who_was_concerned_is_told_though_others_have_joined_since() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        early = rig.ask(owner, ALL)
        other = rig.ask(owner, ALL.replace(b"things", b"nothing"))
        await wait_all_tasks_blocked()
        concerned = rig.joins.concerned(lambda wish: wish.means(("public", "things")))
        late = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert rig.joins.gap("plan_changed", lambda wish: False, concerned) == 1
        told = {
            serial: [each.get("reason") for each in owner.details.get(serial, [])] for serial in (early, other, late)
        }
        assert told == {early: ["plan_changed"], other: [], late: []}
        owner.leave(early)
        assert rig.joins.gap("plan_changed", lambda wish: False, concerned) == 0

    scene(main, World(tables=("things", "nothing")))


def test_whose_socket_is_closed_by_the_word_to_another_channel_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outbox had no room for that."""

    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        first, second = rig.ask(owner, ALL), rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(owner, "system", lambda *_: owner.leave(second))
        assert rig.joins.gap("slot_lost") == 1
        owner.leave(first)
        assert rig.is_clean

    scene(main)
