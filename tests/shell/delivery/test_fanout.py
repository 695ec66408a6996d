"""Fan-out: one frame per audience, commit order on every socket, and nothing for who may not see it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.shell.edge_support import read_all, socket_pair
from tests.shell.fanout_support import BEFORE, Rig, Wire, changes, got, is_clean, outbox, payloads
from tests.support import run
from walstream.history.lineage import Lineage
from walstream.model import Snapshot
from walstream.shell.delivery import fanout as fanout_module
from walstream.shell.delivery import frames as frames_module
from walstream.shell.delivery.outbox import Outbox


def flush(rig: Rig) -> None:
    run(rig.fanout.flush)


async def turns(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()


async def until_half(wire: Wire) -> None:
    """Wait for the middle of a transaction of ten changes."""
    while len(got(wire)) < 2:
        await trio.lowlevel.checkpoint()
    assert len(got(wire)) < 10


@pytest.fixture(params=[("SLICE_CHANGES", 3), ("SLICE_BYTES", 5)])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout_module, *request.param)
    monkeypatch.setattr(frames_module, "SLICE_SOCKETS", 2)


def test_a_frame_is_made_once_per_audience_and_written_once_per_tick() -> None:
    rig = Rig()
    everything = rig.binding()
    wires = [Wire() for _ in range(5)]
    members = [rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0) for wire in wires]
    rig.route(1)
    flush(rig)
    assert {member.audience for member in members} == {members[0].audience}
    before = rig.fanout.frames_out
    made: list[bytes] = []
    shape = members[0].audience.key.shape
    original = type(shape).render

    def render(self: Any, *arguments: Any, **named: Any) -> bytes:
        made.append(original(self, *arguments, **named))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(shape), "render", render)
        rig.route(2)
        rig.route(3)
        flush(rig)
    assert len(made) == 2
    assert rig.fanout.frames_out - before == 10
    assert [wire.writes for wire in wires] == [2] * 5
    assert [wire.data for wire in wires] == [wires[0].data] * 5
    assert [each.last for each in got(wires[0])] == [True] * 3


def test_frames_reach_real_sockets() -> None:
    rig = Rig()
    key = rig.key(rig.binding())
    with socket_pair() as (ours, theirs):
        rig.fanout.join(Outbox(ours, 100_000, lambda _: None), key, BEFORE, 0)
        rig.route(1)
        rig.route(2, 3)
        assert read_all(theirs) == b""
        flush(rig)
        assert len(list(payloads(read_all(theirs)))) == 3


def test_audiences_of_different_ids_topics_and_versions_get_their_own_frames() -> None:
    rig = Rig()
    small, large = rig.binding("n=lt.5"), rig.binding("n=gt.3")
    wires = {name: Wire() for name in ("small", "large", "both", "topic")}
    rig.fanout.join(outbox(wires["small"]), rig.key(small), BEFORE, 0)
    rig.fanout.join(outbox(wires["large"]), rig.key(large), BEFORE, 0)
    rig.fanout.join(outbox(wires["both"]), rig.key(small, large), BEFORE, 0)
    rig.fanout.join(outbox(wires["topic"]), rig.key(small, topic="realtime:u"), BEFORE, 0)
    rig.route(1, 4, 9)
    flush(rig)
    found = {name: [(each.ordinal, set(each.ids), each.last) for each in got(wire)] for name, wire in wires.items()}
    assert found["small"] == found["topic"] == [(0, {small}, False), (1, {small}, True)]
    assert found["large"] == [(1, {large}, False), (2, {large}, True)]
    assert found["both"] == [(0, {small}, False), (1, {small, large}, False), (2, {large}, True)]
    assert {each.topic for each in got(wires["topic"])} == {"realtime:u"}


def test_bindings_with_other_columns_get_a_frame_each() -> None:
    rig = Rig()
    whole, part = rig.binding(), rig.binding(select=("n",))
    wire = Wire()
    rig.fanout.join(outbox(wire), rig.key(whole, part), BEFORE, 0)
    rig.route(1, 2)
    flush(rig)
    found = [(each.ordinal, each.ids, each.last) for each in got(wire)]
    assert sorted(found) == sorted([(0, (whole,), False), (0, (part,), False), (1, (whole,), True), (1, (part,), True)])
    assert [ordinal for ordinal, _, _ in found] == [0, 0, 1, 1]


def test_the_last_change_of_an_audience_is_marked_even_if_others_follow() -> None:
    rig = Rig()
    small = rig.binding("n=lt.5")
    wire = Wire()
    rig.fanout.join(outbox(wire), rig.key(small), BEFORE, 0)
    rig.route(1, 2, 9, 10)
    rig.route(9)
    rig.route(3)
    flush(rig)
    assert [(each.ordinal, each.last) for each in got(wire)] == [(0, False), (1, True), (0, True)]


def test_how_late_they_are_is_counted_of_transactions_that_somebody_gets() -> None:
    rig = Rig()
    rig.fanout.join(outbox(Wire()), rig.key(rig.binding("n=lt.5")), BEFORE, 0)
    for row in ((1, 9), (9,), (2, 3, 4), ()):
        rig.route(*row)
    assert sum(rig.fanout.delays.distribution().counts) == 0
    flush(rig)
    assert sum(rig.fanout.delays.distribution().counts) == 2


def test_who_may_not_see_a_table_gets_nothing() -> None:
    rig = Rig("reader")
    everything = rig.binding()
    allowed, refused = Wire(), Wire()
    rig.fanout.join(outbox(allowed), rig.key(everything), BEFORE, 0)
    rig.fanout.join(outbox(refused), rig.key(everything, role="stranger"), BEFORE, 0)
    rig.route(1, 2)
    rig.access.roles.clear()
    rig.route(3)
    flush(rig)
    assert len(got(allowed)) == 2
    assert refused.data == b""


def test_a_replay_asks_for_access_too() -> None:
    rig = Rig("reader")
    everything = rig.binding()
    rig.route(1)
    refused = Wire()
    rig.fanout.join(outbox(refused), rig.key(everything, role="stranger"), BEFORE, 0)
    flush(rig)
    assert refused.data == b""


def test_a_socket_with_several_topics_keeps_commit_order() -> None:
    rig = Rig()
    everything = rig.binding()
    wire, alone = Wire(), Wire()
    box = outbox(wire)
    rig.fanout.join(outbox(alone), rig.key(everything, topic="a"), BEFORE, 0)
    rig.fanout.join(box, rig.key(everything, topic="a"), BEFORE, 0)
    rig.route(1)  # settles both
    first = rig.route(2)  # waits for the tick's write, as the socket has one topic
    second = rig.fanout.join(box, rig.key(everything, topic="b"), Snapshot(first, first, frozenset(), 0, 0, 1.0), 1)
    rig.route(3)
    rig.fanout.leave(second)
    rig.route(4)
    flush(rig)
    commits = [each.commit for each in got(wire)]
    assert [each.topic for each in got(wire)] == ["a", "a", "b", "a", "b", "a"]
    assert commits == sorted(commits)
    assert [each.topic for each in got(alone)] == ["a"] * 4


def test_a_join_gets_what_its_snapshot_did_not_see_and_nothing_twice() -> None:
    rig = Rig()
    everything = rig.binding()
    seen = rig.append(changes(1), xid=50)
    running = rig.append(changes(2), xid=40)
    above = rig.append(changes(3), xid=51)
    for sequence, transaction in (seen, running, above):
        rig.fanout.route(sequence, transaction, spilled=False)
    wire = Wire()
    # Decoded all three before anybody asked; only xid 50 had ended when the snapshot was taken.
    snapshot = Snapshot(40, 51, frozenset({40}), rig.commit, rig.commit, 1.0)
    rig.fanout.join(outbox(wire), rig.key(everything), snapshot, rig.ring.next_sequence)
    after = rig.route(4)
    flush(rig)
    expected = [running[1].commit_lsn, above[1].commit_lsn, after]
    assert [each.commit for each in got(wire)] == expected


def test_after_a_restart_of_the_server_the_flushed_position_decides() -> None:
    rig = Rig()
    everything = rig.binding()
    wire = Wire()
    rig.fanout.server_started(1.0)
    snapshot = Snapshot(900, 900, frozenset(), 100, 500, 1.0)
    rig.fanout.join(outbox(wire), rig.key(everything), snapshot, 0)
    rig.route(1)
    flush(rig)
    assert wire.data == b""
    rig.fanout.server_started(2.0)
    lived = rig.route(2)
    flush(rig)
    assert [each.commit for each in got(wire)] == [lived]


def test_members_of_another_cluster_are_live_from_now_on() -> None:
    rig = Rig()
    everything = rig.binding()
    wire = Wire()
    rig.fanout.join(outbox(wire), rig.key(everything), Snapshot(900, 900, frozenset(), 9000, 9000, 1.0), 0)
    rig.ring.restart(Lineage("0000000b"))
    rig.fanout.cluster_changed()
    lived = rig.route(1)
    flush(rig)
    assert [each.commit for each in got(wire)] == [lived]


def test_nothing_is_delivered_after_a_leave_and_forgotten_audiences_cost_nothing() -> None:
    rig = Rig()
    everything = rig.binding()
    wire = Wire()
    member = rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0)
    rig.route(1)
    rig.fanout.leave(member)
    rig.fanout.leave(member)
    size = len(wire.data)
    rig.route(2)
    flush(rig)
    assert len(wire.data) == size
    assert is_clean(rig.fanout)


def test_a_sliced_write_is_overtaken_by_nothing(slices: None) -> None:
    """More sockets than one turn writes to: what comes meanwhile goes out after it, on every socket."""
    rig = Rig()
    everything = rig.binding()
    wires = [Wire() for _ in range(7)]
    members = [rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0) for wire in wires]
    rig.route(0)
    flush(rig)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                rig.route(number)
                nursery.start_soon(rig.fanout.flush)
                await turns(1)
            rig.route(6)
            rig.fanout.leave(members[-1])
            size = len(wires[-1].data)
            await turns(1)
            assert len(wires[-1].data) == size, "who left gets no more"
            sees_all = Snapshot(rig.commit + 1, rig.commit + 1, frozenset(), rig.commit, rig.commit, 1.0)
            second = rig.key(everything, topic="second")
            rig.fanout.join(members[0].outbox, second, sees_all, rig.ring.next_sequence)
            rig.route(7)
            nursery.start_soon(rig.fanout.flush)

    run(main)
    for index, wire in enumerate(wires):
        commits = [each.commit for each in got(wire)]
        assert commits == sorted(commits), index
        assert len(commits) == (7 if index == 6 else 9 if index == 0 else 8)


def test_a_write_that_was_cut_off_is_finished_by_the_next(slices: None) -> None:
    rig = Rig()
    everything = rig.binding()
    wires = [Wire() for _ in range(7)]
    for wire in wires:
        rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0)
    rig.route(0)
    flush(rig)
    rig.route(1)

    async def cut_off() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await rig.fanout.flush()

    run(cut_off)
    rig.route(2)
    flush(rig)
    assert [[each.commit for each in got(wire)] for wire in wires] == [[110, 120, 130]] * 7


def test_a_large_transaction_is_routed_in_slices_with_joins_between(slices: None) -> None:
    rig = Rig()
    everything, small = rig.binding(), rig.binding("n=lt.5")
    first, second, filtered, unseeing = Wire(), Wire(), Wire(), Wire()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            rig.fanout.join(outbox(first), rig.key(everything), BEFORE, 0)
            large = rig.route(*range(10), spilled=True)
            rig.route(77)
            await until_half(first)
            # Half is routed. These two were asked for before it; the last one's snapshot sees it.
            rig.fanout.join(outbox(second), rig.key(everything), BEFORE, 0)
            rig.fanout.join(outbox(filtered), rig.key(small), BEFORE, 0)
            sees = Snapshot(large + 1, large + 1, frozenset(), large, large, 1.0)
            rig.fanout.join(outbox(unseeing), rig.key(everything), sees, rig.ring.next_sequence)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(main)
    whole = [(each.ordinal, each.last) for each in got(first)]
    assert whole == [*((number, number == 9) for number in range(10)), (0, True)]
    assert got(second) == got(first)
    assert [(each.ordinal, each.last) for each in got(filtered)] == [(number, number == 4) for number in range(5)]
    assert [(each.commit, each.ordinal) for each in got(unseeing)] == [(120, 0)]
    assert sum(rig.fanout.delays.distribution().counts) == 2


def test_a_large_transaction_that_left_the_ring_is_still_delivered_whole(slices: None) -> None:
    rig = Rig()
    everything = rig.binding()
    first, second = Wire(), Wire()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            rig.fanout.join(outbox(first), rig.key(everything), BEFORE, 0)
            rig.route(*range(10), spilled=True)
            await until_half(first)
            rig.ring.clear()
            rig.fanout.join(outbox(second), rig.key(everything), BEFORE, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(main)
    assert [each.ordinal for each in got(second)] == list(range(10))
    assert got(first) == got(second)


def test_a_run_that_was_cut_off_goes_on_where_it_was(slices: None) -> None:
    rig = Rig()
    everything = rig.binding()
    wire = Wire()
    rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0)

    async def cut_off() -> None:
        rig.route(*range(10), spilled=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            await until_half(wire)
            nursery.cancel_scope.cancel()

    async def again() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(cut_off)
    run(again)
    assert [(each.ordinal, each.last) for each in got(wire)] == [(number, number == 9) for number in range(10)]


@pytest.mark.parametrize("meets", [True, False])
def test_moving_inside_a_large_transaction_misses_and_repeats_nothing(slices: None, meets: bool) -> None:
    rig = Rig("reader", "other")
    everything = rig.binding()
    wire, there, later = Wire(), Wire(), Wire()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            member = rig.fanout.join(outbox(wire), rig.key(everything), BEFORE, 0)
            if meets:
                rig.fanout.join(outbox(there), rig.key(everything, role="other"), BEFORE, 0)
            rig.route(*range(10), spilled=True)
            await until_half(wire)
            rig.fanout.move(member, rig.key(everything, role="other"))
            rig.fanout.join(outbox(later), rig.key(everything, role="other"), BEFORE, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(main)
    for each in (wire, later, *([there] if meets else [])):
        assert [one.ordinal for one in got(each)] == list(range(10))
    assert got(wire)[-1].last
