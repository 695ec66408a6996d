"""Delivery where PostgreSQL has to say who sees which row: whoever may gets it once, in order, whenever answers come.

The world is that of ``test_fanout_joins``; two thirds of its sockets look through policies.
"""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.predicate.rows import TABLE, catalog
from tests.shell.delivery.test_fanout_joins import ACTIONS, ROLES, WEIGHTED, Joined, World, play
from tests.shell.fanout_support import BEFORE, Rig, Wire, changes, got, is_clean, outbox
from tests.support import run
from walstream.lsn import Lsn
from walstream.model import Change, Operation, Relation, ReplicaIdentity, Row, Transaction
from walstream.policy import Ask, Guard, Policy, Protection, Sifted, Viewer
from walstream.predicate.expression import Compare
from walstream.protocol.shapes import Shape
from walstream.router import Binding, Router, parse_filter
from walstream.shell.database.access import TableRight
from walstream.shell.delivery import fanout as fanout_module
from walstream.shell.delivery import frames as frames_module
from walstream.shell.delivery.audience import AudienceKey, Step
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.delivery.judge import Verdict

EVEN, NO_THREES = Viewer("seer", '{"sub":"even"}'), Viewer("seer", '{"sub":"no threes"}')
ASK = Ask("public", "things", "ask()", (("n", "integer"),))
OPEN = Relation("public", "others", TABLE.columns, ("n",))
PROTECTION = Protection("public", "things", (Policy("p", True, "ask()", (("n", "integer"),)),))


class Guarded:
    """Two roles that see all, and one that sees all of ``others``, and of ``things`` what policies choose."""

    def __init__(self) -> None:
        self.seer = TableRight(True, protection=PROTECTION)

    def is_open(self, role: str, relation: Relation) -> bool:
        return role in ROLES or (role == "seer" and relation is OPEN)

    def right(self, role: str, relation: Relation) -> TableRight:
        return self.seer if role == "seer" and relation is not OPEN else TableRight(role in (*ROLES, "seer"))


def sees(viewer: Viewer, row: Row) -> bool:
    number = int(row[0] or b"0")
    return number % 2 == 0 if viewer == EVEN else number % 3 != 0


class Judge:
    """Answers when it is told to. ``pending``: what was asked, in that order."""

    def __init__(self) -> None:
        self.pending: dict[tuple[Viewer, int], tuple[Row, Verdict]] = {}

    def ask(
        self, viewer: Viewer, ask: Ask, transaction: Transaction, relation: Relation, row: Row, *, is_old: bool
    ) -> Verdict:
        assert ask is ASK
        return self.pending.setdefault((viewer, id(row)), (row, Verdict()))[1]

    def cluster_changed(self) -> None:
        """Nothing waits for a cluster here."""

    def answer(self, choice: int) -> None:
        if self.pending:
            key = list(self.pending)[choice % len(self.pending)]
            row, verdict = self.pending.pop(key)
            verdict.answer = sees(key[0], row)


class Judged(World):
    """A third of the sockets sees all, and two thirds what two viewers may see."""

    def __init__(self) -> None:
        super().__init__()
        rig = self.rig
        self.judge = Judge()
        rig.access = Guarded()  # type: ignore[assignment]  # the rig is typed for roles alone
        rig.router = Router(catalog(TABLE, OPEN), lambda viewer, relation: relation is OPEN or ASK)
        rig.fanout = Fanout(rig.router, rig.ring, rig.access, judge=self.judge, doubts=Doubts())
        self.everything = rig.router.add(Binding("*", "public", "*"), {})
        self.small = rig.router.add(Binding("*", "public", "*", parse_filter("n=lt.3")), {})
        small, both = (self.small,), (self.everything, self.small)
        self.ids = {"all": (self.everything,), "small": small, "both": both, "spare": small}
        self.viewers: dict[tuple[int, str], Viewer] = {}
        self.judged_by: dict[tuple[tuple[int, str], int], Viewer] = {}

    def key(self, topic: str, viewer: Viewer) -> AudienceKey:
        wire = self.ids[topic]
        ids = tuple([self.rig.router.look_as(binding_id, viewer) for binding_id in wire])
        return AudienceKey(topic, "1.0.0", Shape.CHANGES, ids, viewer.role, viewer, wire)

    def join(self, choice: int) -> None:
        ready = [pair for pair in self.taken if pair not in self.joined]
        if not ready or ready[choice % len(ready)][0] % 3 == 0:
            super().join(choice)
            return
        pair = ready[choice % len(ready)]
        socket, topic = pair
        snapshot, visible = self.taken[pair]
        viewer = self.viewers[pair] = EVEN if socket % 3 == 1 else NO_THREES
        for commit in self.server.wal[: self.decoded]:
            self.judged_by[pair, commit.lsn] = viewer
        self.joined[pair] = Joined(socket, topic, visible)
        self.members[pair] = self.rig.fanout.join(
            self.outboxes[socket], self.key(topic, viewer), snapshot, self.asked[pair]
        )

    def decode(self, choice: int) -> None:
        if self.decoded < len(self.server.wal):
            for pair, viewer in self.viewers.items():
                self.judged_by[pair, self.server.wal[self.decoded].lsn] = viewer
        super().decode(choice)

    def move(self, choice: int) -> None:
        if not self.members:
            return
        pair = list(self.members)[choice % len(self.members)]
        if pair not in self.viewers:
            super().move(choice)
        elif not self.rig.fanout._backlog:
            viewer = self.viewers[pair] = EVEN if self.viewers[pair] == NO_THREES else NO_THREES
            self.members[pair] = self.rig.fanout.move(self.members[pair], self.key(pair[1], viewer))

    def commit(self, choice: int) -> None:
        """Rows of both tables, or of ``others`` alone."""
        rows = changes(*[(choice + each) % 7 for each in range(choice % 9)])
        mixed = [msgspec.structs.replace(row, relation=OPEN) if row.ordinal * choice % 3 == 0 else row for row in rows]
        self.server.commit(choice, tuple(mixed))

    def answer(self, choice: int) -> None:
        self.judge.answer(choice)
        self.rig.fanout.judged()
        self.check_accounts()

    def check_accounts(self) -> None:
        """An audience has as much room taken as its changes that wait do take."""
        for audience in self.rig.fanout._members.waiting:
            sizes = [item.size for item in audience.waiting if isinstance(item, Step)]
            assert audience.waiting.bytes == sum(sizes)
            assert audience.waiting.largest >= max(sizes, default=0)

    async def settle(self) -> None:
        while self.judge.pending:
            self.answer(7)
            await trio.testing.wait_all_tasks_blocked()
        assert not self.rig.fanout._members.waiting

    def expected(self, joined: Joined) -> list[tuple[int, int, tuple[int, ...]]]:
        pair = (joined.socket, joined.topic)
        found = super().expected(joined)
        if pair not in self.viewers:
            return found
        rows = {(commit.lsn, row.ordinal): row for commit in self.server.wal for row in commit.rows}
        return [
            each
            for each in found
            if (row := rows[each[0], each[1]]).relation is OPEN or sees(self.judged_by[pair, each[0]], row.new or ())
        ]


ANSWERED = (*WEIGHTED, "answer", "answer", "answer")
steps = st.lists(st.tuples(st.sampled_from(ANSWERED), st.integers(0, 200)), min_size=60, max_size=120)


@pytest.mark.parametrize("moving", [False, True])
@given(script=steps)
@settings(max_examples=200)
def test_whoever_may_see_a_row_gets_it_once_and_in_order(moving: bool, script: list[tuple[str, int]]) -> None:
    if not moving:
        script = [step for step in script if step[0] != "move"]
    assert {name for name, _ in script} <= {*ACTIONS, "answer"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout_module, "SLICE_CHANGES", 2)
        patch.setattr(frames_module, "SLICE_SOCKETS", 1)
        world: Judged = run(play, script, Judged)
    world.check()


# -- one thing at a time


class Scene:
    """One socket that looks at ``things`` through policies."""

    def __init__(self, guard: Guard = ASK, text: str = "", *, loose_deletes: bool = False) -> None:
        self.rig = Rig()
        self.judge, self.doubts, self.guarded = Judge(), Doubts(), Guarded()
        self.router = Router(catalog(), lambda viewer, relation: guard, loose_deletes=loose_deletes)
        self.fanout = Fanout(self.router, self.rig.ring, self.guarded, judge=self.judge, doubts=self.doubts)
        self.rig.router, self.rig.fanout = self.router, self.fanout
        self.wire = Wire()
        self.bare = self.router.add(Binding("*", "public", "things", parse_filter(text)), {})
        ids = (self.router.look_as(self.bare, EVEN),)
        self.key = AudienceKey("t", "1.0.0", Shape.CHANGES, ids, "seer", EVEN, (self.bare,))
        self.outbox = outbox(self.wire)
        self.member = self.fanout.join(self.outbox, self.key, BEFORE, 0)

    def route(self, *rows: Change) -> None:
        sequence, transaction = self.rig.append(rows)
        self.fanout.route(sequence, transaction, spilled=False)

    def records(self) -> list[dict[str, object]]:
        """Answer everything, and what came of it."""
        import json

        async def settle() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fanout.run)
                while self.judge.pending:
                    self.judge.answer(0)
                self.fanout.judged()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await self.fanout.flush()

        run(settle)
        return [json.loads(payload)["payload"]["data"] for payload in self.wire.frames()]


FULL = Relation("public", "things", TABLE.columns, ("n",), ReplicaIdentity.FULL)


def update(new: int, old: int, *, text: bytes | None = b'"new"') -> Change:
    rows: list[Row] = [(b"%d" % new, text, b"true"), (b"%d" % old, b'"old"', b"false")]
    return Change(FULL, Operation.UPDATE, rows[0], rows[1], 0)


@pytest.mark.parametrize("guard", [ASK, Sifted(Compare("n", "eq", "2"), {})])
def test_an_old_row_that_must_not_be_seen_is_told_by_its_key_alone(guard: Guard) -> None:
    scene = Scene(guard)
    scene.route(update(2, 2))
    scene.route(update(2, 3))
    seen, hidden = scene.records()
    assert seen["old_record"] == {"n": 2, "t": "old", "b": False}
    assert hidden["old_record"] == {"n": 3}
    assert seen["record"] == hidden["record"] == {"n": 2, "t": "new", "b": True}


@pytest.mark.parametrize("guard", [ASK, Sifted(Compare("n", "eq", "2"), {})])
def test_a_row_that_leaves_what_may_be_seen_tells_nothing(guard: Guard) -> None:
    scene = Scene(guard)
    scene.route(update(3, 2))
    scene.route(Change(FULL, Operation.DELETE, None, (b"3", b'"x"', b"true"), 0))
    scene.route(Change(FULL, Operation.DELETE, None, (b"2", b'"x"', b"true"), 0))
    (deleted,) = scene.records()
    assert (deleted["type"], deleted["old_record"]) == ("DELETE", {"n": 2, "t": "x", "b": True})


@pytest.mark.parametrize("guard", [ASK, Sifted(Compare("b", "eq", "true"), {})])
def test_the_keys_of_deleted_rows_may_be_told_to_everybody(guard: Guard) -> None:
    scene = Scene(guard, "n=gt.1", loose_deletes=True)
    for number in (1, 2, 3):
        scene.route(Change(FULL, Operation.DELETE, None, (b"%d" % number, b'"x"', b"false"), 0))
    scene.route(Change(TABLE, Operation.DELETE, None, (b"5", None, None), 0))
    assert [told["old_record"] for told in scene.records()] == [{"n": 2}, {"n": 3}, {"n": 5}]
    assert list(scene.doubts) == []
    assert not scene.judge.pending


def test_unchanged_values_are_taken_from_an_old_row_that_is_not_shown() -> None:
    scene = Scene()
    scene.route(update(2, 3, text=None))
    (told,) = scene.records()
    assert (told["record"], told["old_record"]) == ({"n": 2, "t": "old", "b": True}, {"n": 3})


def test_columns_that_the_role_may_not_see_are_nowhere() -> None:
    scene = Scene(True)
    scene.guarded.seer = TableRight(True, frozenset({"n", "b"}), PROTECTION)
    scene.route(update(2, 2))
    (told,) = scene.records()
    assert told["record"] == {"n": 2, "b": True}
    assert told["old_record"] == {"n": 2, "b": False}
    assert [column["name"] for column in told["columns"]] == ["n", "b"]  # type: ignore[attr-defined]  # of JSON


def test_a_filter_that_looks_at_a_hidden_column_matches_nothing() -> None:
    scene = Scene(True, "t=eq.a")
    scene.route(*changes(1))
    scene.guarded.seer = TableRight(True, frozenset({"n"}), PROTECTION)
    scene.route(*changes(2))
    assert [told["record"] for told in scene.records()] == [{"n": 1, "t": "a", "b": True}]


def test_who_loses_the_table_gets_nothing_of_what_waited() -> None:
    scene = Scene()
    scene.route(*changes(2))
    scene.guarded.seer = TableRight(False)
    assert scene.records() == []


def test_without_a_viewer_nothing_of_a_protected_table_is_seen() -> None:
    scene = Scene(True)
    wire = Wire()
    key = AudienceKey("u", "1.0.0", Shape.CHANGES, (scene.bare,), "seer")
    scene.fanout.join(outbox(wire), key, BEFORE, 0)
    scene.route(*changes(2, 4, 6))
    assert len(scene.records()) == 3
    assert got(wire) == []


def test_rows_of_which_the_wal_says_too_little_are_counted() -> None:
    scene = Scene(Sifted(Compare("b", "eq", "true"), {}))
    scene.route(Change(TABLE, Operation.DELETE, None, (b"2", None, None), 0))
    scene.route(Change(TABLE, Operation.UPDATE, (b"2", b'"x"', None), None, 0))
    scene.route(Change(TABLE, Operation.UPDATE, (b"2", None, b"true"), None, 0))
    (told,) = scene.records()
    assert told["record"] == {"n": 2, "b": True}
    assert [(doubt.name, doubt.reason, doubt.rows) for doubt in scene.doubts] == [
        ("public.things", "key_only_old_row", 1), ("public.things", "unchanged_toast", 1)
    ]  # fmt: skip


def test_whoever_waits_too_long_for_too_much_overflows_alone() -> None:
    scene = Scene()
    scene.outbox.limit_bytes = 10_000
    told: list[object] = []
    scene.outbox.on_overflow = told.append
    for _ in range(4):
        assert told == []
        text = b'"' + b"x" * 4000 + b'"'
        scene.route(Change(TABLE, Operation.INSERT, (b"2", text, b"true"), None, 0))
    assert told == [scene.outbox]
    scene.fanout.leave(scene.member)
    assert is_clean(scene.fanout)
    assert scene.records() == []


def test_one_row_larger_than_all_the_room_is_waited_for_with_what_follows() -> None:
    scene = Scene()
    scene.outbox.limit_bytes = 10_000
    told: list[object] = []
    scene.outbox.on_overflow = told.append
    for text in (b"x" * 4000, b"x" * 40_000, b"x" * 4000):
        scene.route(Change(TABLE, Operation.INSERT, (b"2", b'"' + text + b'"', b"true"), None, 0))
    assert told == []
    assert [len(record["record"]["t"]) for record in scene.records()] == [4000, 40_000, 4000]  # type: ignore[index]  # JSON
    for _ in range(4):  # what was waited for is forgotten
        assert told == []
        scene.route(Change(TABLE, Operation.INSERT, (b"2", b'"' + b"x" * 4000 + b'"', b"true"), None, 0))
    assert told == [scene.outbox]


def test_truncates_show_no_row_and_are_not_asked_about() -> None:
    scene = Scene()
    feed = scene.router.add(Binding("*", "public", "things", truncate=True, viewer=EVEN), {})
    wire = Wire()
    key = AudienceKey("f", "1.0.0", Shape.FEED, (feed,), "seer", EVEN)
    scene.fanout.join(outbox(wire), key, BEFORE, 0)
    scene.route(Change(TABLE, Operation.TRUNCATE, None, None, 0))
    assert scene.records() == []
    assert len(wire.frames()) == 1
    assert Lsn(scene.rig.commit) > 0


@pytest.mark.parametrize("moves", [False, True])
def test_after_a_gap_nothing_comes_of_what_waited_for_answers(moves: bool) -> None:
    scene = Scene()
    scene.route(*changes(2, 4))
    if moves:
        ids = (scene.router.look_as(scene.bare, NO_THREES),)
        scene.member = scene.fanout.move(scene.member, scene.key._replace(ids=ids, viewer=NO_THREES))
        scene.route(*changes(2))
    scene.fanout.pursuits.skip(scene.member)
    scene.route(*changes(8))
    assert scene.records() == []
    assert [told["record"]["n"] for told in scene.records()] == [8]  # type: ignore[index]  # JSON
    assert not len(scene.fanout.pursuits)
    scene.fanout.leave(scene.member)
    assert is_clean(scene.fanout)
