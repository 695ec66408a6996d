"""What policies say of private rooms: the questions of many joins in one trip, and a look for policies that changed.

The statements are in ``shell.database.topic_policies``; who asks, and what follows, is ``directory``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, Protocol

import structlog
import trio

from walstream.channel.permission import BUSY, POLICY_ERROR, UNREACHED, Answer, Question, Trouble, nothing
from walstream.errors import WalstreamError
from walstream.shell.database.postgres import Database
from walstream.shell.database.topic_policies import Watched, judge, watch_policies
from walstream.telemetry.log import AUTHORIZATION_FAILED, POLICIES_CHANGED

ANSWER_SECONDS: Final = 2.0
"""How long an answer waits for the database."""

WORKERS: Final = 2
"""Batches under way at a time: policies that take long hold up half of the questions at most."""

BATCH_MAX: Final = 100
BATCH_SECONDS: Final = 1.0
"""How long a batch may go on: what is left of it is asked with the next one."""

QUEUE_MAX: Final = 20_000
LOOK_SECONDS: Final = 10.0
"""Between looks for policies that have changed."""

TOLD_SECONDS: Final = 60.0
TOLD_MAX: Final = 100
"""How long, and how many, failures of policies are remembered that have been logged."""

_Answered = Callable[[Answer], None]

log = structlog.get_logger()


class Authorizer(Protocol):
    """Who knows what policies say of private rooms. Both are synchronous."""

    def ask(self, question: Question, answered: Callable[[Answer], None], *, patient: bool = False) -> None:
        """``answered`` is called once, later or before this returns. ``patient``: after all that somebody waits for."""
        ...

    def may_admit(self) -> bool:
        """Whether there is any policy that could let anybody in, as far as is known."""
        ...


class NoPolicies:
    """An ``Authorizer`` of a database without policies."""

    def ask(self, question: Question, answered: Callable[[Answer], None], *, patient: bool = False) -> None:
        """Nothing is allowed."""
        answered(nothing(question))

    def may_admit(self) -> bool:
        """No."""
        return False


class Asking(Protocol):
    """Where answers come from. Both raise WalstreamError."""

    async def judge(self, questions: Collection[Question]) -> Mapping[Question, Answer]:
        """Those that were answered in time."""
        ...

    async def watch(self) -> Watched:
        """What the policies are like now."""
        ...


class AskingPostgres:
    """Asks a database of its own, so that slow policies keep nothing else from its connections."""

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._schema = schema

    async def judge(self, questions: Collection[Question]) -> Mapping[Question, Answer]:
        """See ``Asking``."""
        listed = tuple(questions)
        return await self._database.run(partial(judge, schema=self._schema, questions=listed, seconds=BATCH_SECONDS))

    async def watch(self) -> Watched:
        """See ``Asking``."""
        return await self._database.run(partial(watch_policies, schema=self._schema))


class _Waiting:
    """Who wants to know one question's answer."""

    __slots__ = ("answered", "deadline")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.answered: list[_Answered] = []


class PolicyAuthorizer:
    """An ``Authorizer`` over PostgreSQL. Equal questions that wait together are one.

    ``on_change``: policies, grants or memberships of roles have changed.
    """

    def __init__(self, asking: Asking, *, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self.questions = 0
        self.failures = 0
        self._asking = asking
        self._urgent: dict[Question, _Waiting] = {}
        self._patient: dict[Question, _Waiting] = {}
        self._wanted = trio.Event()
        self._watched: Watched | None = None
        self._told: dict[str, float] = {}

    def ask(self, question: Question, answered: _Answered, *, patient: bool = False) -> None:
        """See ``Authorizer``. Urgent ones are answered within about ``ANSWER_SECONDS``."""
        queue = self._patient if patient else self._urgent
        waiting = queue.get(question)
        if waiting is None:
            if not patient and len(queue) >= QUEUE_MAX:
                answered(BUSY)
                return
            waiting = queue[question] = _Waiting(math.inf if patient else trio.current_time() + ANSWER_SECONDS)
        waiting.answered.append(answered)
        self._wanted.set()

    def may_admit(self) -> bool:
        """See ``Authorizer``."""
        return self._watched is None or self._watched.admits

    async def run(self) -> None:
        """Answer for ever. Cancelling it leaves questions unanswered."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            for _ in range(WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            while not (self._urgent or self._patient):
                if self._wanted.is_set():
                    self._wanted = trio.Event()  # one for all workers that have nothing to do
                await self._wanted.wait()
            queue = self._urgent or self._patient
            batch = {question: queue.pop(question) for question in list(queue)[:BATCH_MAX]}
            await self._answer(batch, queue)
            await trio.lowlevel.checkpoint()

    async def _answer(self, batch: dict[Question, _Waiting], queue: dict[Question, _Waiting]) -> None:
        answers: Mapping[Question, Answer] = {}
        deadline = min(min(waiting.deadline for waiting in batch.values()), trio.current_time() + 2 * ANSWER_SECONDS)
        is_reached = False
        with trio.move_on_at(deadline):
            try:
                answers = await self._asking.judge(batch)
                is_reached = True
            except WalstreamError as error:
                log.debug(AUTHORIZATION_FAILED, code=error.code, error=error.message)
        self.questions += len(answers)
        now = trio.current_time()
        for question, waiting in batch.items():
            answer = answers.get(question)
            if answer is None and is_reached and now < waiting.deadline:
                again = queue.setdefault(question, waiting)
                if again is not waiting:
                    again.answered += waiting.answered
                continue
            if isinstance(answer, Trouble):
                self._report(answer, question)
            for answered in waiting.answered:
                answered(answer if answer is not None else UNREACHED)

    def _report(self, trouble: Trouble, question: Question) -> None:
        self.failures += 1
        now = trio.current_time()
        text = trouble.text if trouble.code == POLICY_ERROR else trouble.code
        if self._told.get(text, -math.inf) > now - TOLD_SECONDS:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told[text] = now
        log.warning(
            AUTHORIZATION_FAILED, code=trouble.code, error=trouble.text, role=question.role, topic=question.topic[:200],
            command="INSERT" if question.writes else "SELECT",
        )  # fmt: skip

    async def _watch(self) -> None:
        while True:
            try:
                with trio.fail_after(LOOK_SECONDS):
                    found = await self._asking.watch()
            except (WalstreamError, trio.TooSlowError):
                pass  # said by whoever watches the database
            else:
                before, self._watched = self._watched, found
                if before is not None and before != found:
                    log.info(POLICIES_CHANGED)
                    self.on_change()
            await trio.sleep(LOOK_SECONDS)
