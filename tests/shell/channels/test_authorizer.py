"""Questions about policies: batched, bounded in time, asked again where a batch had no time, and changes noticed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import pytest
import structlog
import trio
import trio.testing

from tests.support import run
from walstream.channel.permission import (
    BUSY,
    POLICY_ERROR,
    READS_ALL,
    READS_NOTHING,
    UNREACHED,
    Answer,
    Question,
    Trouble,
)
from walstream.errors import DatabaseUnreachable
from walstream.shell.channels import authorizer as module
from walstream.shell.channels.authorizer import BATCH_MAX, LOOK_SECONDS, NoPolicies, PolicyAuthorizer
from walstream.shell.database.topic_policies import Watched


def question(number: int = 0) -> Question:
    return Question("authenticated", f"u{number}", "{}", "{}", "hall")


class FakeAsking:
    def __init__(self) -> None:
        self.batches: list[list[Question]] = []
        self.answers_max = BATCH_MAX
        self.is_away = False
        self.hangs = False
        self.gate: trio.Event | None = None
        self.answer: Answer = READS_ALL
        self.watched = Watched("a", False)

    async def judge(self, questions: Collection[Question]) -> Mapping[Question, Answer]:
        self.batches.append(list(questions))
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.hangs:
            await trio.sleep_forever()
        if self.is_away:
            raise DatabaseUnreachable("away")
        return dict.fromkeys(list(questions)[: self.answers_max], self.answer)

    async def watch(self) -> Watched:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise DatabaseUnreachable("away")
        return self.watched


def serving(test: Callable[[PolicyAuthorizer, FakeAsking], Awaitable[None]]) -> None:
    async def main() -> None:
        asking = FakeAsking()
        authorizer = PolicyAuthorizer(asking)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(authorizer.run)
            await trio.testing.wait_all_tasks_blocked()
            await test(authorizer, asking)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


async def settle(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


def test_questions_of_one_tick_are_one_batch_and_equal_ones_are_one() -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        answers: list[Answer] = []
        for number in range(BATCH_MAX + 10):
            authorizer.ask(question(number % (BATCH_MAX + 5)), answers.append)
        await settle()
        assert answers == [READS_ALL] * (BATCH_MAX + 10)
        assert [len(batch) for batch in asking.batches] == [BATCH_MAX, 5]
        assert authorizer.questions == BATCH_MAX + 5

    serving(test)


def test_what_a_batch_had_no_time_for_is_asked_again() -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        asking.answers_max = 2
        answers: list[Answer] = []
        for number in range(5):
            authorizer.ask(question(number), answers.append)
        await settle()
        assert [len(batch) for batch in asking.batches] == [5, 3, 1]
        assert answers == [READS_ALL] * 5

    serving(test)


def test_who_waits_goes_before_who_does_not() -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        asking.gate = trio.Event()
        for number in range(module.WORKERS):
            authorizer.ask(question(number), lambda _: None)
            await settle()
        authorizer.ask(question(10), lambda _: None, patient=True)
        authorizer.ask(question(11), lambda _: None)
        asking.gate.set()
        await settle()
        assert asking.batches[module.WORKERS :] == [[question(11)], [question(10)]]

    serving(test)


@pytest.mark.parametrize("hangs", [False, True])
def test_without_a_database_there_is_an_answer_in_time(hangs: bool) -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        asking.hangs, asking.is_away = hangs, not hangs
        answers: list[Answer] = []
        authorizer.ask(question(), answers.append)
        await settle(2.0 if hangs else 0.0)
        assert answers == [UNREACHED]
        asking.hangs = asking.is_away = False
        authorizer.ask(question(), answers.append)
        await settle()
        assert answers == [UNREACHED, READS_ALL]

    serving(test)


def test_more_questions_than_can_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 3)

    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        answers: list[Answer] = []
        for number in range(5):
            authorizer.ask(question(number), answers.append)
        assert answers == [BUSY] * 2
        await settle()
        assert answers[2:] == [READS_ALL] * 3

    serving(test)


def test_a_policy_that_fails_is_logged_once_a_minute() -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        asking.answer = Trouble(POLICY_ERROR, "division by zero")
        with structlog.testing.capture_logs() as lines:
            for number in range(3):
                authorizer.ask(question(number), lambda _: None)
                await settle()
            assert [(line["event"], line["code"], line["error"]) for line in lines] == [
                ("authorization.failed", "RlsPolicyError", "division by zero")
            ]
            await settle(61)
            authorizer.ask(question(), lambda _: None)
            await settle()
            assert len(lines) == 2
        assert authorizer.failures == 4

    serving(test)


def test_a_change_of_policies_is_noticed_and_says_whether_anybody_may_come_in() -> None:
    async def test(authorizer: PolicyAuthorizer, asking: FakeAsking) -> None:
        changes: list[int] = []
        authorizer.on_change = lambda: changes.append(1)
        assert not authorizer.may_admit()
        asking.watched = Watched("b", True)
        await settle(LOOK_SECONDS + 1)
        assert changes == [1]
        assert authorizer.may_admit()
        asking.is_away = True
        await settle(3 * LOOK_SECONDS)
        assert changes == [1]

    serving(test)


def test_a_database_that_nobody_has_looked_at_may_have_policies() -> None:
    assert PolicyAuthorizer(FakeAsking()).may_admit()
    assert not NoPolicies().may_admit()
    answers: list[Answer] = []
    NoPolicies().ask(question(), answers.append)
    assert answers == [READS_NOTHING]
