"""Every transaction that a join's snapshot did not see is delivered exactly once, whatever comes between what.

A small PostgreSQL is played beside the fan-out: xids, commit records, the end of transactions, snapshots. Its commit
records may be decoded before their transactions end, as those of the real one may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shell.fanout_support import Got, Rig, Wire, changes, got, outbox
from tests.support import run
from walstream.model import Change, Snapshot
from walstream.shell.delivery import fanout as fanout_module
from walstream.shell.delivery import frames as frames_module
from walstream.shell.delivery.audience import Member

ROLES = ("reader", "other")
SOCKETS = 6
TOPICS = ("all", "small", "both", "spare")
OFTEN = ("all", "all", "all", "small", "both", "spare")


class Commit(NamedTuple):
    """A commit record. ``route``: its transaction's number in commit order."""

    xid: int
    lsn: int
    rows: tuple[Change, ...]


class Server:
    """Transactions from their beginning to their end; the next xid is at the wrap of 32 bits."""

    def __init__(self) -> None:
        self.next_xid = (1 << 32) - 4
        self.latest_completed = self.next_xid - 1
        self.running: list[int] = []  # no commit record yet
        self.ending: list[int] = []  # commit record written, still in progress for snapshots
        self.visible: set[int] = set()
        self.wal: list[Commit] = []
        self.end = 1000

    def begin(self) -> None:
        self.running.append(self.next_xid)
        self.next_xid += 1
        if not self.next_xid & 0xFFFFFFFF:
            self.next_xid += 3  # the first three of each epoch have other meanings

    def commit(self, choice: int, rows: tuple[Change, ...]) -> None:
        if not self.running:
            self.begin()
        xid = self.running.pop(choice % len(self.running))
        self.end += 10
        self.wal.append(Commit(xid, self.end, rows))
        self.ending.append(xid)

    def finish(self, choice: int) -> None:
        if self.ending:
            xid = self.ending.pop(choice % len(self.ending))
            self.visible.add(xid)
            self.latest_completed = max(self.latest_completed, xid)

    def snapshot(self) -> Snapshot:
        xmax = self.latest_completed + 1
        running = frozenset(xid for xid in (*self.running, *self.ending) if xid < xmax)
        return Snapshot(min(running, default=xmax), xmax, running, self.end, self.end, 1.0)


class Joined(NamedTuple):
    """One topic of one socket, and what it has to get."""

    socket: int
    topic: str
    visible: frozenset[int]  # xids that its snapshot saw


class World:
    """A server, its fan-out, and clients that come and go."""

    def __init__(self) -> None:
        self.rig = Rig(*ROLES)
        self.server = Server()
        self.everything, self.small = self.rig.binding(), self.rig.binding("n=lt.3")
        self.ids = {
            "all": (self.everything,), "small": (self.small,),
            "both": (self.everything, self.small), "spare": (self.small,),
        }  # fmt: skip
        self.wires = [Wire() for _ in range(SOCKETS)]
        self.outboxes = [outbox(wire) for wire in self.wires]
        self.decoded = 0
        self.asked: dict[tuple[int, str], int] = {}  # the ring's next number when the snapshot was asked for
        self.taken: dict[tuple[int, str], tuple[Snapshot, frozenset[int]]] = {}
        self.members: dict[tuple[int, str], Member] = {}
        self.joined: dict[tuple[int, str], Joined] = {}
        self.left: dict[tuple[int, str], list[Got]] = {}  # what it had got when it left

    # -- what may happen, in any order

    def begin(self, _: int) -> None:
        self.server.begin()

    def commit(self, choice: int) -> None:
        self.server.commit(choice, changes(*[(choice + each) % 7 for each in range(choice % 9)]))

    def finish(self, choice: int) -> None:
        self.server.finish(choice)

    def decode(self, choice: int) -> None:
        if self.decoded < len(self.server.wal):
            commit = self.server.wal[self.decoded]
            self.decoded += 1
            if not commit.rows:
                self.rig.ring.pass_by(commit.lsn)
                return
            self.rig.commit = commit.lsn - 10
            sequence, transaction = self.rig.append(commit.rows, commit.xid & 0xFFFFFFFF)
            self.rig.fanout.route(sequence, transaction, spilled=choice % 3 == 0)

    def ask(self, choice: int) -> None:
        pair = choice % SOCKETS, OFTEN[choice // SOCKETS % len(OFTEN)]
        if pair not in self.joined:
            self.asked.setdefault(pair, self.rig.ring.next_sequence)

    def snapshot(self, choice: int) -> None:
        waiting = [pair for pair in self.asked if pair not in self.taken]
        if waiting:
            pair = waiting[choice % len(waiting)]
            self.taken[pair] = self.server.snapshot(), frozenset(self.server.visible)

    def join(self, choice: int) -> None:
        ready = [pair for pair in self.taken if pair not in self.joined]
        if ready:
            pair = ready[choice % len(ready)]
            socket, topic = pair
            snapshot, visible = self.taken[pair]
            self.joined[pair] = Joined(socket, topic, visible)
            key = self.rig.key(*self.ids[topic], topic=topic)
            self.members[pair] = self.rig.fanout.join(self.outboxes[socket], key, snapshot, self.asked[pair])

    def leave(self, choice: int) -> None:
        if self.members:
            pair = list(self.members)[choice % len(self.members)]
            self.rig.fanout.leave(self.members.pop(pair))
            self.outboxes[pair[0]].flush()
            self.left[pair] = self.of(pair)

    def move(self, choice: int) -> None:
        if self.members:
            pair = list(self.members)[choice % len(self.members)]
            key = self.members[pair].audience.key
            role = ROLES[1 - ROLES.index(key.role)]
            self.members[pair] = self.rig.fanout.move(self.members[pair], key._replace(role=role))

    def shrink(self, choice: int) -> None:
        """Nothing in the ring may be needed any more once everybody who asked has joined."""
        if not self.asked.keys() - self.joined.keys() and not self.server.ending and choice % 3 == 0:
            self.rig.ring.clear()

    async def settle(self) -> None:
        """Nothing more happens by itself: let come what somebody else still has to do."""

    # -- what has to come of it

    def of(self, pair: tuple[int, str]) -> list[Got]:
        return [each for each in got(self.wires[pair[0]]) if each.topic == pair[1]]

    def expected(self, joined: Joined) -> list[tuple[int, int, tuple[int, ...]]]:
        found = []
        for commit in self.server.wal[: self.decoded]:
            if commit.xid in joined.visible:
                continue
            for change in commit.rows:
                assert change.new is not None
                matched = {self.everything} | ({self.small} if int(change.new[0] or 0) < 3 else set())
                ids = tuple(sorted(matched & set(self.ids[joined.topic])))
                if ids:
                    found.append((commit.lsn, change.ordinal, ids))
        return found

    def check(self) -> None:
        for pair, joined in self.joined.items():
            found = self.of(pair)
            plain = [(each.commit, each.ordinal, tuple(sorted(each.ids))) for each in found]
            expected = self.expected(joined)
            if pair in self.left:
                assert found == self.left[pair], "nothing comes after a leave"
                assert plain == expected[: len(plain)]
            else:
                assert plain == expected
            ends = [index for index, each in enumerate(plain) if [*plain, (0, 0, ())][index + 1][0] != each[0]]
            marked = [index for index, each in enumerate(found) if each.last]
            assert set(marked) <= set(ends), "only the last change of a transaction may be marked"
            if pair not in self.left and not self.moved:
                assert marked == ends
        for wire in self.wires:
            # Between transactions every socket keeps commit order, but for what its joins had to catch up with.
            for topic in TOPICS:
                commits = [each.commit for each in got(wire) if each.topic == topic]
                assert commits == sorted(commits)

    moved = False


W = TypeVar("W", bound=World)
ACTIONS = ("begin", "commit", "finish", "decode", "ask", "snapshot", "join", "leave", "move", "shrink", "turn", "flush")
WEIGHTED = (*ACTIONS, "commit", "decode", "decode", "ask", "snapshot", "join", "join", "finish", "turn")
steps = st.lists(st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 200)), min_size=60, max_size=100)


async def play(script: list[tuple[str, int]], make: Callable[[], W]) -> W:
    world = make()
    doing: dict[str, Callable[[], Awaitable[None]]] = {
        "turn": trio.lowlevel.checkpoint,
        "flush": world.rig.fanout.flush,
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.rig.fanout.run)
        for name, choice in script:
            if name in doing:
                nursery.start_soon(doing[name]) if choice % 2 else await doing[name]()
                continue
            world.moved |= name == "move"
            getattr(world, name)(choice)
        while world.decoded < len(world.server.wal):
            world.decode(1)
        await trio.testing.wait_all_tasks_blocked()
        await world.settle()
        await world.rig.fanout.flush()
        nursery.cancel_scope.cancel()
    return world


@pytest.mark.parametrize("moving", [False, True])
@given(script=steps)
@settings(max_examples=200)
def test_every_live_transaction_is_delivered_exactly_once(moving: bool, script: list[tuple[str, int]]) -> None:
    if not moving:
        script = [step for step in script if step[0] != "move"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout_module, "SLICE_CHANGES", 2)
        patch.setattr(frames_module, "SLICE_SOCKETS", 1)
        world: World = run(play, script, World)
    world.check()
