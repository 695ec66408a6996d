"""The judge collects while it is busy, waits for what cannot be seen yet, asks again, and loses nothing.

Against a database that is not there; what PostgreSQL answers is in ``integration/policy``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import pytest
import structlog
import trio

from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.lsn import Lsn
from walstream.model import Catalog, Column, Relation, Row, Snapshot, Transaction, TypeInfo
from walstream.policy.model import Ask, Viewer
from walstream.shell.database.judgement import Outcome, Question
from walstream.shell.database.postgres import PgConnection
from walstream.shell.delivery import judge as module
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.judge import ROWS_MAX, Judge, Verdict
from walstream.telemetry.log import POLICIES_UNASKED, POLICY_FAILED

T = TypeVar("T")

TYPES = [
    TypeInfo(23, "int4"),
    TypeInfo(25, "text"),
    TypeInfo(114, "json"),
    TypeInfo(701, "float8"),
    TypeInfo(1700, "numeric"),
]
COLUMNS = (
    Column("id", 23, "int4"), Column("owner", 25, "text"), Column("j", 114, "json"), Column("f", 701, "float8"),
    Column("n", 1700, "numeric"), Column("g", 701, "float8"),
)  # fmt: skip
RELATION = Relation("public", "t", COLUMNS)
OWN = Ask("public", "t", "owner = auth.uid()", (("owner", "text"),))
ADA, BOB = Viewer("authenticated", "ada"), Viewer("authenticated", "bob")
NOW = Snapshot(100, 100, frozenset(), flush_lsn=1000, insert_lsn=1000, server_start=1.0)
OLD = Transaction(xid=50, commit_lsn=Lsn(500), commit_at=0, changes=())


def row(number: int, owner: str = "ada") -> Row:
    return (b"%d" % number, b'"%b"' % owner.encode(), b"null", b"1", b"1", b"1")


class Server:
    """Answers questions: a viewer sees what its claims own. ``asked``: by question, the viewer and how many rows."""

    closed = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.snapshot = NOW
        self.looks = 0
        self.asked: list[tuple[str, int]] = []
        self.failures: list[Exception] = []
        self.gate: trio.Event | None = None
        self.at_once = 0
        self.busiest = 0
        self.answer: Callable[[Question], Outcome] = owned
        monkeypatch.setattr(module, "load_snapshot", self._look)
        catalog = Catalog()
        catalog.load(types={info.oid: info for info in TYPES})
        self.judge = Judge(self, catalog, Doubts(), sessions=2)

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        self.at_once += 1
        self.busiest = max(self.busiest, self.at_once)
        try:
            await trio.lowlevel.checkpoint()
            if self.gate is not None and work != self._look:
                await self.gate.wait()
            if self.failures:
                raise self.failures.pop(0)
            return work(cast(Any, self))
        finally:
            self.at_once -= 1

    def _look(self, _: PgConnection) -> Snapshot:
        self.looks += 1
        return self.snapshot

    def judge_question(self, question: Question) -> Outcome:
        self.asked.append((question.viewer.claims, len(question.rows)))
        return self.answer(question)

    def ask(self, viewer: Viewer, rows: Sequence[Row], transaction: Transaction = OLD, ask: Ask = OWN) -> list[Verdict]:
        return [self.judge.ask(viewer, ask, transaction, RELATION, one, is_old=False) for one in rows]


def owned(question: Question) -> Outcome:
    return Outcome(frozenset(n for n, one in enumerate(question.rows) if f'"{question.viewer.claims}"' in one.texts[0]))


def all_in_turn(_: object, questions: Sequence[Question], connection: PgConnection) -> list[Outcome]:
    return [cast(Server, connection).judge_question(question) for question in questions]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Instead of sessions it answers itself."""
    monkeypatch.setattr(module, "_judge_in_turn", all_in_turn)
    return Server(monkeypatch)


def beside(server: Server, work: Callable[[], Any]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.judge.run)
            await work()
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def answers(verdicts: Sequence[Verdict]) -> list[bool | None]:
    return [verdict.answer for verdict in verdicts]


def test_what_comes_while_it_is_busy_is_one_batch(server: Server) -> None:
    calls = []

    async def work() -> None:
        server.judge.on_answers = lambda: calls.append(len(server.judge))
        server.gate = trio.Event()
        first = server.ask(ADA, [row(1)])
        await trio.sleep(1)
        second = server.ask(BOB, [row(2, "bob")])
        await trio.sleep(1)
        more = [server.ask(viewer, [row(3), row(4, "bob")]) for _ in range(5) for viewer in (ADA, BOB)]
        assert len(server.judge) == 22
        server.gate.set()
        await trio.sleep(1)
        assert answers(first) == answers(second) == [True]
        assert [answers(verdicts) for verdicts in more] == [[True, False], [False, True]] * 5
        assert sorted(server.asked) == [("ada", 1), ("ada", 10), ("bob", 1), ("bob", 10)]
        assert server.busiest == 2
        assert calls[-1] == 0

    beside(server, work)


def test_a_batch_of_one_viewer_has_an_end(server: Server) -> None:
    async def work() -> None:
        verdicts = server.ask(ADA, [row(number) for number in range(2 * ROWS_MAX + 1)])
        await trio.sleep(1)
        assert set(answers(verdicts)) == {True}
        assert sorted(rows for _, rows in server.asked) == [1, ROWS_MAX, ROWS_MAX]

    beside(server, work)


def test_long_rows_share_no_statement(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 1000)

    async def work() -> None:
        long = [row(number, "x" * 400) for number in range(3)] + [row(3, "x" * 5000), row(4)]
        verdicts = server.ask(ADA, long)
        await trio.sleep(1)
        assert answers(verdicts) == [False] * 4 + [True]
        assert sorted(rows for _, rows in server.asked) == [1, 1, 1, 2]

    beside(server, work)


def test_rows_of_a_transaction_wait_until_a_snapshot_sees_it(server: Server) -> None:
    running = Transaction(xid=99, commit_lsn=Lsn(900), commit_at=0, changes=())

    async def work() -> None:
        server.snapshot = NOW._replace(xmin=99, in_progress=frozenset({99}))
        hidden, seen = server.ask(ADA, [row(1)], running), server.ask(ADA, [row(2)])
        await trio.sleep(10)
        assert answers(hidden + seen) == [None, True]
        assert 100 <= server.looks <= 110  # every 100 ms at last
        server.snapshot = NOW
        await trio.sleep(0.1)
        assert answers(hidden) == [True]
        looks = server.looks
        late = server.ask(ADA, [row(3)], running)
        await trio.sleep(1)
        assert answers(late) == [True]
        assert server.looks == looks, "the newest snapshot sees it already"

    beside(server, work)


def test_a_snapshot_says_nothing_of_what_was_written_after_it(server: Server) -> None:
    """A crash may have lost what the snapshot saw beyond the flush position, and its xids be used again."""
    again = Transaction(xid=60, commit_lsn=Lsn(1001), commit_at=0, changes=())

    async def work() -> None:
        server.ask(ADA, [row(1)])
        await trio.sleep(1)
        verdicts = server.ask(ADA, [row(2)], again)
        await trio.sleep(1)
        assert answers(verdicts) == [None]
        server.snapshot = NOW._replace(flush_lsn=1001)
        await trio.sleep(1)
        assert answers(verdicts) == [True]

    beside(server, work)


def test_transactions_of_another_cluster_are_not_waited_for(server: Server) -> None:
    old, new = (Transaction(xid=xid, commit_lsn=Lsn(lsn), commit_at=0, changes=()) for xid, lsn in ((99, 999), (7, 70)))

    async def work() -> None:
        server.snapshot = NOW._replace(xmin=99, in_progress=frozenset({99}))
        waiting = server.ask(ADA, [row(1)], old)
        await trio.sleep(1)
        assert answers(waiting) == [None]
        server.snapshot = Snapshot(7, 7, frozenset(), flush_lsn=70, insert_lsn=70, server_start=2.0)
        server.judge.cluster_changed()
        early = server.ask(BOB, [row(2, "bob")], new)
        await trio.sleep(1)
        assert answers(waiting) == [True]
        assert answers(early) == [None], "the snapshot of the other cluster would see it"
        server.snapshot = server.snapshot._replace(xmin=8, xmax=8)
        await trio.sleep(1)
        assert answers(early) == [True]

    beside(server, work)


def test_a_database_that_is_away_is_asked_again(server: Server) -> None:
    async def work() -> None:
        server.failures = [DatabaseUnreachable("gone") for _ in range(9)]
        verdicts = server.ask(ADA, [row(1)])
        await trio.sleep(60)
        assert answers(verdicts) == [True]

    beside(server, work)


def test_what_has_to_be_repaired_is_told_once(server: Server) -> None:
    async def work() -> None:
        server.failures = [DatabaseRefused("too many", sqlstate="53300", reason="too_many_connections")] * 5
        verdicts = server.ask(ADA, [row(1)])
        await trio.sleep(60)
        assert answers(verdicts) == [True]

    with structlog.testing.capture_logs() as logged:
        beside(server, work)
    assert [line["code"] for line in logged if line["event"] == POLICIES_UNASKED] == ["too_many_connections"]


def test_what_a_turn_left_is_asked_in_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_at_a_time(_: object, questions: Sequence[Question], connection: PgConnection) -> list[Outcome]:
        return [cast(Server, connection).judge_question(questions[0])]

    monkeypatch.setattr(module, "_judge_in_turn", one_at_a_time)

    async def work() -> None:
        verdicts = {
            name: server.ask(Viewer("r", name), [row(1, "u7"), row(2, name)]) for name in map("u{}".format, range(20))
        }
        await trio.sleep(1)
        assert {name: answers(found) for name, found in verdicts.items()} == {
            name: [name == "u7", True] for name in verdicts
        }

    beside(server, work)


def test_a_condition_that_is_slow_has_one_session_at_most(server: Server) -> None:
    slow = Ask("public", "t", "pg_sleep(9) is null", (("owner", "text"),))
    times_out = True

    def answer(question: Question) -> Outcome:
        if question.form.ask != slow:
            return owned(question)
        return Outcome(again=True, slow=True) if times_out else owned(question)

    server.answer = answer

    async def work() -> None:
        nonlocal times_out
        waiting = [server.ask(Viewer("r", f"u{number}"), [row(1)], ask=slow)[0] for number in range(10)]
        await trio.sleep(20)
        assert set(answers(waiting)) == {None}
        asked = len(server.asked)
        fast = server.ask(ADA, [row(2)])
        await trio.sleep(0.01)
        assert answers(fast) == [True]
        assert len(server.asked) <= asked + 2
        times_out = False
        await trio.sleep(1)
        assert set(answers(waiting)) == {False}

    beside(server, work)


def test_errors_of_policies_are_told_once_and_counted(server: Server) -> None:
    server.answer = lambda question: Outcome(doubts={0: "policy_error"}, error="division by zero", repair="x")

    async def work() -> None:
        for _ in range(3):
            assert answers(server.ask(ADA, [row(1)])) == [None]
            await trio.sleep(1)

    with structlog.testing.capture_logs() as logged:
        beside(server, work)
    told = [line for line in logged if line["event"] == POLICY_FAILED]
    assert [(line["table"], line["role"], line["error"]) for line in told] == [
        ("public.t", "authenticated", "division by zero")
    ]
    assert server.judge.doubts.health() == [{"table": "public.t", "reason": "policy_error", "rows": 3}]


@pytest.mark.parametrize(
    ("columns", "cells", "is_old", "reason"),
    [
        ([("owner", "text")], {"owner": None}, False, "unchanged_toast"),
        ([("owner", "text")], {"owner": None}, True, "key_only_old_row"),
        ([("gone", "text")], {}, False, "absent_column"),
        ([("j", "json")], {"j": b'"\\"\\\\ud800\\""'}, False, "lossy_value"),
        ([("f", "float8"), ("n", "numeric"), ("g", "float8")], dict.fromkeys("fng", b"null"), False, "not_a_number"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_answered_at_once(
    server: Server, columns: list[tuple[str, str]], cells: dict[str, bytes | None], is_old: bool, reason: str
) -> None:
    names = [column.name for column in COLUMNS]
    broken = tuple(cells.get(name, cell) for name, cell in zip(names, row(1), strict=True))
    ask = Ask("public", "t", "true", tuple(columns))
    verdicts = [server.judge.ask(viewer, ask, OLD, RELATION, broken, is_old=is_old) for viewer in (ADA, BOB)]
    assert answers(verdicts) == [False, False]
    assert server.judge.doubts.health() == [{"table": "public.t", "reason": reason, "rows": 2}]
    assert len(server.judge) == 0


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("numeric", ["null", '"NaN"', '"Infinity"', '"-Infinity"']),
        ("numeric(10,2)", ["null", '"NaN"']),
    ],
)
def test_a_null_is_judged_as_each_value_that_it_may_have_been(
    server: Server, declared: str, expected: list[str]
) -> None:
    questions: list[Question] = []

    def answer(question: Question) -> Outcome:
        questions.append(question)
        return Outcome()

    server.answer = answer
    ask = Ask("public", "t", "n is null", (("id", "int"), ("n", declared)))

    async def work() -> None:
        server.ask(ADA, [(*row(1)[:4], b"null", b"1")], ask=ask)
        await trio.sleep(1)

    beside(server, work)
    assert questions[0].rows[0].texts == tuple(f'{{"0":1,"1":{value}}}' for value in expected)
    assert questions[0].rows[0].loss == "not_a_number"


def test_conditions_that_nobody_asks_about_are_forgotten(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONDITIONS_MAX", 10)

    async def work() -> None:
        for number in range(100):
            verdicts = server.ask(ADA, [row(1)], ask=Ask("public", "t", f"{number} = 1", (("owner", "text"),)))
            await trio.sleep(1)
            assert answers(verdicts) == [True]

    beside(server, work)
    assert len(server.judge._conditions) <= 12
