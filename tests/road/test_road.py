"""The road from the WAL to clients under every order of faults that the machine thinks of, against a model of it.

A failing order is made as short as it gets and printed as the calls of ``Road`` that it consists of. That the machine
can fail is tested as well: bugs that are put into the daemon are found by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from integration.faults.failpoints import arm
from tests.road.clients import EVERYTHING
from tests.road.judging import Broken
from tests.road.road import Deed, Road, instead_of_the_world
from tests.road.server import NAMES, Postgres
from tests.support import run
from walstream.app import Daemon

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.booleans()), min_size=1, max_size=4)
TABLE = st.integers(0, len(NAMES) - 1)
WHO = st.integers(0, 7)
CONDITIONS = st.sampled_from([None, "", "t = 'red'", "t = 'green'"])
TURNS = st.sampled_from([0, 0, 0, 1, 2, 5, 10, 20])


Script = list[tuple[str, tuple[Any, ...]]]


def no_bug(daemon: Daemon) -> None:
    """The daemon as it is."""


def drive(script: Script, bug: Deed = no_bug) -> Counter[str]:
    """Let all that happen, and judge it; what subscribers were told, and how often.

    What was met first is raised, without the groups that trio puts around it.
    """
    postgres = Postgres()
    with instead_of_the_world(postgres):
        try:
            return run(play, postgres, script, bug, autojump=True)
        except BaseExceptionGroup as group:
            raise next(_leaves(group)) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


async def play(postgres: Postgres, script: Script, bug: Deed) -> Counter[str]:
    async with trio.open_nursery() as nursery:
        road = Road(postgres, nursery, bug)
        for name, args in script:
            done = getattr(road, name)(*args)
            if done is not None:
                await done
        await road.settle()
        nursery.cancel_scope.cancel()
    return sum([each.judge.outcomes for each in road.subscribers], Counter())


class Machine(RuleBasedStateMachine):
    """Writes a script and, at its end, plays it. ``told``: what subscribers of all examples were told."""

    bug: Deed = staticmethod(no_bug)
    told: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.script: Script = [("turns", (0,))]

    def _then(self, name: str, *args: Any, turns: int = 0) -> None:
        self.script += [(name, args), ("turns", (turns,))]

    @rule(rows=ROWS, turns=TURNS)
    def commit(self, rows: Any, turns: int) -> None:
        self._then("commit", rows, False, False, turns=turns)

    @rule(rows=ROWS, at=WHO, turns=TURNS)
    def commit_that_hangs(self, rows: Any, at: int, turns: int) -> None:
        """No query sees it yet, and somebody joins."""
        self._then("commit", rows, False, True, turns=turns)
        self._then("connect", at, 1, False, turns=turns)

    @rule(rows=ROWS, begins=st.booleans(), turns=TURNS)
    def overtake(self, rows: Any, begins: bool, turns: int) -> None:
        """What began earlier is committed now, if anything did."""
        if begins:
            self._then("begin", turns=turns)
        self._then("commit", rows, not begins, False, turns=turns)

    @rule(table=TABLE, count=st.integers(3, 40), turns=TURNS)
    def bulk(self, table: int, count: int, turns: int) -> None:
        self._then("bulk", table, count, turns=turns)

    @rule(table=TABLE, condition=CONDITIONS, turns=TURNS)
    def plan(self, table: int, condition: str | None, turns: int) -> None:
        self._then("plan", table, condition, turns=turns)

    @rule(at=WHO, count=st.sampled_from([1, 1, 2, 8]), slow=st.booleans(), turns=TURNS)
    def connect(self, at: int, count: int, slow: bool, turns: int) -> None:
        self._then("connect", at, count, slow, turns=turns)

    @rule(at=WHO, size=st.sampled_from([100, 400, 800, 3000, EVERYTHING]), turns=TURNS)
    def read(self, at: int, size: int, turns: int) -> None:
        self._then("read", at, size, turns=turns)

    @rule(name=st.sampled_from(["leave", "hang_up", "hang_up", "stall"]), at=WHO, turns=TURNS)
    def client(self, name: str, at: int, turns: int) -> None:
        self._then(name, at, turns=turns)

    @rule(after=st.sampled_from([0, 0, 1, 3, 10, 30]), pace=st.sampled_from([0, 1, 4]), slow=st.booleans(), turns=TURNS)
    def kill(self, after: int, pace: int, slow: bool, turns: int) -> None:
        """And whoever was there comes back."""
        self._then("pace", pace)
        self._then("kill", after, turns=turns)
        self._then("connect", 0, 8, slow, turns=turns)

    @rule(name=st.sampled_from(["cut", "restart_server"]), turns=TURNS)
    def stream(self, name: str, turns: int) -> None:
        self._then(name, turns=turns)

    @rule(name=st.sampled_from(["drop_slot", "move_slot", "promote"]), turns=TURNS)
    def upset(self, name: str, turns: int) -> None:
        self._then(name, turns=turns)

    @rule(name=st.sampled_from(["rollback", "end", "checkpoint", "settle"]), turns=TURNS)
    def circumstance(self, name: str, turns: int) -> None:
        self._then(name, turns=turns)

    @rule(rows=ROWS, seconds=st.sampled_from([0.05, 1, 12]), turns=TURNS)
    def away(self, rows: Any, seconds: float, turns: int) -> None:
        """The server cannot be reached for a while, in which others reach it."""
        self._then("away", turns=turns)
        self._then("commit", rows, False, False)
        self._then("sleep", seconds)
        self._then("back", turns=turns)

    @rule(trip=st.sampled_from([0.0, 0.01, 0.5, 3.0]), seconds=st.sampled_from([0.05, 1, 12, 400]))
    def wait(self, trip: float, seconds: float) -> None:
        """``trip``: how long a question to the database takes from now on."""
        self._then("slow", trip)
        self._then("sleep", seconds)

    def teardown(self) -> None:
        self.told.update(drive(self.script, self.bug))


ORDINARY = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_every_promise_is_kept_under_every_order_of_faults() -> None:
    run_state_machine_as_test(Machine, settings=ORDINARY)
    everything = {"joined", "resumed", "got", "too_old", "plan_changed", "slot_lost", "other_cluster"}
    if ORDINARY.derandomize:  # else chance may have it otherwise
        assert everything <= Machine.told.keys(), "the examples lead everywhere"


# -- orders in which promises were broken once

ROW, OTHER = (0, 0, False), (1, 0, False)

ONCE: dict[str, list[tuple[Any, ...]]] = {
    "a position within a transaction that is read again under another plan": [
        ("turns", 0), ("connect", 3, 1, True), ("turns", 0), ("commit", [ROW, ROW, OTHER, OTHER, OTHER], False, False),
        ("turns", 0), ("read", 0, 520), ("plan", 0, None), ("turns", 0), ("kill", 0), ("turns", 0),
        ("connect", 3, 1, False),
    ],
    "the only members of their audiences fall behind": [
        ("turns", 6), ("connect", 6, 3, True), ("turns", 5), ("bulk", 0, 23), ("turns", 0),
    ],
    "topics that resume on one socket fill it for each other": [
        ("settle",), ("commit", [OTHER, OTHER], False, False), ("turns", 10), ("kill", 2), ("turns", 5), ("turns", 10),
        ("connect", 2, 3, True), ("bulk", 0, 4), ("turns", 0),
    ],
    "a slot that is lost while somebody is in the midst of a transaction": [
        ("turns", 0), ("connect", 0, 1, True), ("turns", 0), ("bulk", 0, 30), ("turns", 20), ("drop_slot",),
        ("read", 0, 1800), ("sleep", 0.2),
    ],
    "a position that others have left behind": [
        ("turns", 0), ("connect", 0, 1, False), ("turns", 0), ("plan", 1, None), ("commit", [ROW], False, False),
        ("turns", 0), ("sleep", 400), ("commit", [OTHER], False, False), ("turns", 0), ("hang_up", 0),
        ("connect", 0, 1, False), ("turns", 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
def test_what_went_wrong_once_does_not_again(name: str) -> None:
    drive([(step[0], step[1:]) for step in ONCE[name]])


# -- the machine can fail


def forget_the_refused(daemon: Daemon) -> None:
    """Whoever had no room goes on behind the change that did not go out."""
    pursuits = daemon.fanout.pursuits
    fall_behind = pursuits.fall_behind

    def behind(audience: Any, outbox: Any, place: Any) -> None:
        fall_behind(audience, outbox, place._replace(ordinal=place.ordinal + 1))

    pursuits.fall_behind = behind  # type: ignore[method-assign]  # that is the bug


def tell_what_was_seen(daemon: Daemon) -> None:
    """Snapshots are not looked at."""
    daemon.fanout.is_live = lambda transaction, snapshot: True  # type: ignore[method-assign]  # that is the bug


def miss_what_hangs(daemon: Daemon) -> None:
    """What was routed before a join is taken for seen."""
    daemon.ring.maybe_live = lambda snapshot, asked_at: []  # type: ignore[method-assign]  # that is the bug


def take_old_for_new(daemon: Daemon) -> None:
    """What is read again is delivered again."""
    daemon.ring.is_known = lambda commit_lsn: False  # type: ignore[method-assign]  # that is the bug


BUGS: dict[str, Deed] = {
    name: partial(arm, faults=f"{name}:1")
    for name in (
        "drop-a-change", "deliver-twice", "reorder-two", "tear-a-transaction", "acknowledge-early", "silence",
        "skip-in-catch-up",
    )
}  # fmt: skip
BUGS |= {bug.__name__: bug for bug in (forget_the_refused, tell_what_was_seen, miss_what_hangs, take_old_for_new)}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found_within_as_many_examples_as_usual(name: str) -> None:
    class Faulty(Machine):
        bug = staticmethod(BUGS[name])

    quick = settings(ORDINARY, phases=[Phase.generate], derandomize=True, database=None, print_blob=False)
    with pytest.raises(Broken):
        run_state_machine_as_test(Faulty, settings=quick)
