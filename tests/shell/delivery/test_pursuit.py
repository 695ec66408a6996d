"""Slow sockets and resuming clients get everything once and in order, however slowly they read."""

from __future__ import annotations

import socket
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shell.fanout_support import Got, Narrow, Rig, Wire, changes, got, is_clean, outbox
from tests.support import freed_at_once, run
from walstream.history.resume import Start
from walstream.lsn import Lsn
from walstream.model import Snapshot
from walstream.protocol.websocket import frame
from walstream.shell.delivery import fanout as fanout_module
from walstream.shell.delivery import pursuit as pursuit_module
from walstream.shell.delivery.audience import Member
from walstream.shell.delivery.outbox import Outbox
from walstream.shell.delivery.pursuit import Beginning, Pursuit

ROLES = ("reader", "other")
LIMIT = 3000
FRAME = 330  # bytes of one change on the wire, about
WORD = frame(b'{"topic":"gap","payload":{"data":{"position":"c.0.0.0"},"ids":[]}}')


class Client:
    """One socket in one topic; ``since``: after which change it began."""

    def __init__(self, world: World, since: tuple[int, int]) -> None:
        self.world = world
        self.wire = Narrow()
        self.overflows: list[Outbox] = []
        self.outbox = Outbox(cast(socket.socket, self.wire), LIMIT, lambda outbox: None, self.overflows.append)
        self.since = since
        self.member: Member | None = None
        self.held: tuple[Snapshot, int] | None = None
        self.skipped: list[tuple[int, int]] = []  # the newest change that was read at each word of a gap

    def read(self, room: int) -> None:
        self.wire.room += room
        self.outbox.parked = False
        self.outbox.flush()

    def got(self) -> list[Got]:
        whole = Wire()
        whole.data = self.wire.data
        return got(whole)


class World:
    def __init__(self) -> None:
        self.rig = Rig(*ROLES)
        self.key = self.rig.key(self.rig.binding(), self.rig.binding("n=lt.3"))
        self.committed: list[tuple[int, int]] = []
        self.clients: list[Client] = []
        self.moved = False

    def route(self, choice: int) -> None:
        count = choice % 7
        if count:
            lsn = self.rig.route(*[(choice + each) % 6 for each in range(count)], spilled=choice % 5 == 0)
            self.committed += [(lsn, ordinal) for ordinal in range(count)]

    def join(self, _: int) -> None:
        """Live from the next transaction on."""
        xid = self.rig.commit + 1
        now = Snapshot(xid, xid, frozenset(), self.rig.commit, self.rig.commit, 1.0)
        client = Client(self, (self.rig.commit, 1 << 40))
        client.member = self.rig.fanout.join(client.outbox, self.key, now, self.rig.ring.next_sequence)
        self.clients.append(client)

    def resume(self, choice: int) -> None:
        if not self.committed:
            return
        lsn, ordinal = since = self.committed[-1 - choice % len(self.committed)]
        client = Client(self, since)
        start = Start(Lsn(lsn), ordinal)
        sequence = self.rig.ring.next_sequence
        client.member = self.rig.fanout.resume(client.outbox, self.key, [start, start], sequence)
        self.clients.append(client)

    def hold(self, _: int) -> None:
        """Whose rows are read as of now; its changes come when that is done."""
        xid = self.rig.commit + 1
        now = Snapshot(xid, xid, frozenset(), self.rig.commit, self.rig.commit, 1.0)
        client = Client(self, (self.rig.commit, 1 << 40))
        pursuits = self.rig.fanout.pursuits
        client.member = pursuits.hold(client.outbox, self.key)
        client.held = now, pursuits.first([now], self.rig.ring.next_sequence)
        self.clients.append(client)

    def release(self, choice: int = 0) -> None:
        held = [client for client in self.clients if client.held is not None]
        if held:
            client = held[choice % len(held)]
            assert client.held is not None
            assert client.member is not None
            assert client.got() == []
            now, first = client.held
            client.held = None
            pursuits = self.rig.fanout.pursuits
            assert pursuits.is_kept(first)
            pursuits.release(client.member, [now, now], first)

    def read(self, choice: int) -> None:
        if self.clients:
            self.clients[choice % len(self.clients)].read(choice * 20)

    def leave(self, choice: int) -> None:
        if self.clients and choice % 3 == 0:
            client = self.clients.pop(choice % len(self.clients))
            if client.member is not None:
                self.rig.fanout.leave(client.member)

    def move(self, choice: int) -> None:
        if self.clients:
            client = self.clients[choice % len(self.clients)]
            assert client.member is not None
            key = client.member.audience.key
            role = ROLES[1 - ROLES.index(key.role)]
            client.member = self.rig.fanout.move(client.member, key._replace(role=role, generation=0))
            self.moved = True

    def gap(self, choice: int) -> None:
        """A client is told that it may have missed changes, whatever is under way to it."""
        ready = [each for each in self.clients if each.held is None and each.outbox.queued_bytes < LIMIT - len(WORD)]
        if ready:
            client = ready[choice % len(ready)]
            assert client.member is not None
            self.rig.fanout.pursuits.skip(client.member)
            if client.outbox.offer(WORD):  # who has no room is closed instead
                client.skipped.append(max(self.committed[-1:], default=client.since))
            else:
                self.clients.remove(client)
                self.rig.fanout.leave(client.member)

    def check(self) -> None:
        for client in self.clients:
            assert not client.overflows
            parts: list[list[Got]] = [[]]
            for each in client.got():
                parts.append([]) if each.topic == "gap" else parts[-1].append(each)
            *before, found = parts
            for part, skipped in zip(before, client.skipped, strict=True):
                told = list(dict.fromkeys([(each.commit, each.ordinal) for each in part]))
                assert told == [place for place in self.committed if place > client.since][: len(told)]
                client.since = max(client.since, (skipped[0], 1 << 40))
            expected = [place for place in self.committed if place > client.since]
            places = [(each.commit, each.ordinal) for each in found]
            # A change that is known by its place may come twice when a socket has no room for a part of its frames.
            assert list(dict.fromkeys(places)) == expected
            assert places == sorted(places)
            ends = [at for at, place in enumerate(places) if [*places, (0, 0)][at + 1][0] != place[0]]
            if not self.moved:
                assert [at for at, each in enumerate(found) if each.last and at in ends] == ends


ACTIONS = (
    "route",
    "route",
    "route",
    "join",
    "resume",
    "hold",
    "release",
    "read",
    "read",
    "leave",
    "move",
    "gap",
    "turn",
)
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 200)), min_size=30, max_size=80)


async def play(script: list[tuple[str, int]]) -> World:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.rig.fanout.run)
        for name, choice in script:
            if name == "turn":
                await world.rig.fanout.flush()
                await trio.testing.wait_all_tasks_blocked()
            else:
                getattr(world, name)(choice)
        await world.rig.fanout.flush()
        for _ in world.clients:
            world.release()
        world.route(1)  # what everybody who is behind is to arrive at
        for _ in range(len(world.committed) + 50):
            await world.rig.fanout.flush()
            for client in world.clients:
                client.read(100_000)
            await trio.testing.wait_all_tasks_blocked()
        assert not len(world.rig.fanout.pursuits), "everybody is live in the end"
        nursery.cancel_scope.cancel()
    return world


@pytest.mark.parametrize("moving", [False, True])
@given(script=steps)
@settings(max_examples=100)
def test_everybody_gets_everything_at_their_own_pace(moving: bool, script: list[tuple[str, int]]) -> None:
    if not moving:
        script = [step for step in script if step[0] != "move"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout_module, "SLICE_CHANGES", 2)
        patch.setattr(pursuit_module, "SLICE_CHANGES", 3)
        patch.setattr(pursuit_module, "ROOM_BYTES", 2 * FRAME)
        world = run(play, script)
    world.check()
    for client in world.clients:
        assert client.member is not None
        world.rig.fanout.leave(client.member)
    assert is_clean(world.rig.fanout)


def test_who_falls_off_the_ring_overflows() -> None:
    async def main() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.rig.fanout.run)
            world.join(0)
            world.join(0)
            slow, quick = world.clients
            quick.read(1 << 20)
            for _ in range(20):
                world.route(6)
                await world.rig.fanout.flush()
            await trio.testing.wait_all_tasks_blocked()
            assert not slow.overflows
            assert len(world.rig.fanout.pursuits) == 1
            world.rig.ring.clear()
            slow.read(LIMIT)
            await trio.testing.wait_all_tasks_blocked()
            assert slow.overflows
            assert not quick.overflows
            assert len(quick.got()) == 120
            nursery.cancel_scope.cancel()

    run(main)


def test_the_only_member_of_an_audience_may_fall_behind_in_the_midst_of_a_transaction() -> None:
    """Sockets with several topics get frames one by one, so one without room leaves while its audiences are told."""

    async def main() -> None:
        world = World()
        rig = world.rig
        client = Client(world, (0, 0))
        now = Snapshot(rig.commit, rig.commit, frozenset(), 0, 0, 1.0)
        for topic in ("realtime:one", "realtime:two"):
            rig.fanout.join(client.outbox, rig.key(rig.binding(), topic=topic), now, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            rig.route(*range(20))
            assert len(rig.fanout.pursuits) == 2
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
                client.read(LIMIT)
            nursery.cancel_scope.cancel()
        for topic in ("realtime:one", "realtime:two"):
            assert [each.ordinal for each in client.got() if each.topic == topic] == [*range(20)]

    run(main)


def test_topics_of_one_socket_wait_for_room_and_not_for_the_next_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fills it while the other waits for its turn."""
    monkeypatch.setattr(pursuit_module, "ROOM_BYTES", 2 * FRAME)

    async def main() -> None:
        world = World()
        rig = world.rig
        client = Client(world, (0, 0))
        first = rig.route(*range(5))
        start = Start(Lsn(first), -1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            await trio.testing.wait_all_tasks_blocked()
            for topic in ("realtime:one", "realtime:two"):
                rig.fanout.resume(client.outbox, rig.key(rig.binding(), topic=topic), [start], 1)
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
                client.read(LIMIT)
            nursery.cancel_scope.cancel()
        for topic in ("realtime:one", "realtime:two"):
            assert [each.ordinal for each in client.got() if each.topic == topic] == [*range(5)]

    run(main)


def test_a_window_that_has_moved_on_is_noticed() -> None:
    rig = Rig()
    for number in range(5):
        rig.route(number)
    pursuits = rig.fanout.pursuits
    assert [pursuits.is_kept(sequence) for sequence in (0, 4, 5)] == [True, True, True]
    rig.ring.clear()
    assert [pursuits.is_kept(sequence) for sequence in (0, 4, 5)] == [False, False, True]
    # A large one that has left the window waits to be routed, and is there as long.
    rig.route(1, 2, spilled=True)
    rig.ring.clear()
    assert [pursuits.is_kept(sequence) for sequence in (4, 5, 6)] == [False, True, True]
    xid = rig.commit + 1
    assert pursuits.first([Snapshot(xid, xid, frozenset(), 0, 0, 1.0)], 6) == 5


def test_a_place_that_another_commit_has_taken_is_not_gone_on_from() -> None:
    async def main() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.rig.fanout.run)
            client = Client(world, (0, 0))
            start = Start(Lsn(world.rig.commit + 10), 0, xid=999_999)
            client.member = world.rig.fanout.resume(client.outbox, world.key, [start, start], 0)
            client.read(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
            assert not client.overflows, "it may still come"
            world.route(3)
            await trio.testing.wait_all_tasks_blocked()
            assert client.overflows
            assert client.got() == []
            nursery.cancel_scope.cancel()

    run(main)


def test_bindings_of_one_join_may_go_on_from_different_places() -> None:
    """One resumes, the other begins at the join's snapshot, which may be older than what is read next."""

    async def main() -> None:
        rig = Rig()
        everything, small = rig.binding(), rig.binding("n=lt.3")
        for number in (1, 2, 5):
            rig.route(number)
        sequence, late = rig.append(changes(1))
        rig.fanout.route(sequence, late, spilled=False)
        wire = Wire()
        snapshot = Snapshot(late.xid, late.xid + 1, frozenset({late.xid}), rig.commit + 15, rig.commit + 15, 1.0)
        starts: list[Beginning] = [Start(Lsn(110), 0), snapshot]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            rig.fanout.resume(outbox(wire), rig.key(everything, small), starts, rig.ring.next_sequence)
            await trio.testing.wait_all_tasks_blocked()
            # Of what the snapshot sees already, although it is read only now.
            rig.fanout.route(*rig.append(changes(0), xid=50), spilled=False)
            rig.fanout.route(*rig.append(changes(2)), spilled=False)
            rig.route(1)
            await trio.testing.wait_all_tasks_blocked()
            await rig.fanout.flush()
            nursery.cancel_scope.cancel()
        assert [(each.commit, sorted(each.ids)) for each in got(wire)] == [
            (120, [everything]), (130, [everything]), (140, sorted([everything, small])), (150, [everything]),
            (160, sorted([everything, small])), (170, sorted([everything, small])),
        ]  # fmt: skip

    run(main)


@pytest.mark.parametrize("how", ["in slices", "at its end", "resumed", "refused"])
def test_a_large_transaction_is_told_to_its_end_although_the_ring_let_go_of_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no room in its midst, or for what is written at its end, or comes back: they get it at their own pace.

    Of who comes back the ring lets go while it is told ("resumed"), or while there is no room for the next change.
    """

    async def main() -> None:
        world = World()
        ring = world.rig.ring
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.rig.fanout.run)
            comes_back = how in ("resumed", "refused")
            if comes_back:
                world.route(1)
                world.route(6)
                world.resume(5)
            else:
                world.join(0)
                world.route(6)
                await world.rig.fanout.flush()
            (slow,) = world.clients
            lsn = world.rig.route(*[number % 6 for number in range(40)], spilled=True)
            if not comes_back:
                ring.clear()
            places = [*world.committed, *((lsn, number) for number in range(40))]
            while len(slow.wire.data) < 45 * FRAME and not slow.overflows:
                slow.read(FRAME)
                await trio.sleep(pursuit_module.HOLD_SECONDS / 2)
                if len(slow.wire.data) > (4 if how == "refused" else 20) * FRAME:
                    ring.clear()
            slow.read(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
            assert not slow.overflows
            found = slow.got()
            assert [(each.commit, each.ordinal) for each in found] == [each for each in places if each > slow.since]
            assert found[-1].last
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(fanout_module, "SLICE_CHANGES", 2 if how == "in slices" else 500)
    monkeypatch.setattr(pursuit_module, "SLICE_CHANGES", 3)
    run(main, autojump=True)


def test_who_does_not_read_keeps_nothing_that_the_ring_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.rig.fanout.run)
            world.join(0)
            (stalled,) = world.clients
            world.rig.route(*[number % 6 for number in range(40)], spilled=True)
            world.rig.ring.clear()
            await trio.sleep(pursuit_module.HOLD_SECONDS - 1)
            assert not stalled.overflows
            await trio.sleep(2)
            assert stalled.overflows
            assert not len(world.rig.fanout.pursuits)
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(fanout_module, "SLICE_CHANGES", 2)
    run(main, autojump=True)


def test_who_leaves_while_behind_leaves_nothing_to_the_collector() -> None:
    async def main() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.rig.fanout.run)
            world.join(0)
            for _ in range(20):
                world.route(6)
                await world.rig.fanout.flush()
            (client,) = world.clients
            assert client.member is not None
            assert len(world.rig.fanout.pursuits) == 1
            world.rig.fanout.leave(client.member)
            client.member = None
            await trio.sleep(2 * pursuit_module.LOOK_SECONDS)
            nursery.cancel_scope.cancel()

    with freed_at_once(Member, Pursuit):
        run(main, autojump=True)
