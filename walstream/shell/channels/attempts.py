"""Statements over tables of the moment: tried with patience, and a failure is told once, not at every try.

What is written, and what a failure means for it, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import structlog
import trio

from walstream.errors import DatabaseRefused, EnvironmentFailure
from walstream.shell.database.postgres import PgConnection
from walstream.shell.supervise import next_delay

T = TypeVar("T")

PATIENCE_SECONDS: Final = 2.0
"""For one batch, which who stops the daemon waits for."""

SWEEP_SECONDS: Final = 30.0
"""For what concerns many rows at once, and may be cut off at any time."""

GOODBYE_SECONDS: Final = 1.0
"""For what is written at the end."""

DUTY: Final = 10
"""The pause after a round of writes is at least so many times as long as the round: it must not load the database."""

SPOILT: Final = ("22", "23", "54")
"""Classes of SQLSTATE that mean the values, not the database: data, constraints, limits of the program."""

log = structlog.get_logger()


class Statements(Protocol):
    """What runs SQL for us: ``postgres.Database``."""

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` with a connection in autocommit. Raises DatabaseUnreachable or DatabaseRefused."""
        ...


async def keep_writing(write: Callable[[], Awaitable[bool]], pause_seconds: float) -> None:
    """Call ``write`` for ever, with pauses; rarely where it is slow, ever more rarely while it says False."""
    delay = 0.0
    while True:
        started = trio.current_time()
        if await write():
            delay, pause = 0.0, DUTY * (trio.current_time() - started)
        else:
            delay = pause = next_delay(delay, spread=0.0)
        await trio.sleep(max(pause_seconds, pause))


class Attempts:
    """Tries statements on a database that may be away. ``event``: the log event of a refusal, which names ``node``."""

    def __init__(self, database: Statements, event: str, node: str) -> None:
        self._database = database
        self._event = event
        self._node = node
        self._trouble = ""
        self.has_failed = True
        """Whether the newest try failed, or none was made: what was known of the tables may be so no more."""

    async def batch(self, work: Callable[[PgConnection], T]) -> T | None:
        """The answer of ``work``, or None where it failed; whether it took effect is then unknown.

        A batch under way is finished before a cancellation has effect, so that it cannot be written after a goodbye.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._try(work, PATIENCE_SECONDS, shield=True)

    async def sweep(self, work: Callable[[PgConnection], T]) -> T | None:
        """The same for statements that may take long and be cancelled."""
        return await self._try(work, SWEEP_SECONDS, shield=False)

    async def last(self, work: Callable[[PgConnection], T]) -> None:
        """The same at the end of the daemon: within a second, whatever becomes of it."""
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            try:
                await self._database.run(work)
            except EnvironmentFailure as error:
                log.debug(self._event, error=str(error), node=self._node)

    async def _try(self, work: Callable[[PgConnection], T], seconds: float, *, shield: bool) -> T | None:
        try:
            with trio.fail_after(seconds, shield=shield):
                answer = await self._database.run(work)
        except (EnvironmentFailure, trio.TooSlowError) as error:
            self.has_failed = True
            self._tell(error)
            return None
        self.has_failed, self._trouble = False, ""
        return answer

    def _tell(self, error: EnvironmentFailure | trio.TooSlowError) -> None:
        """Say once what somebody has to repair. That the database is away is said by who proves the way to it."""
        if not isinstance(error, DatabaseRefused):
            return
        trouble = error.reason or error.code
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(self._event, error=str(error), code=trouble, node=self._node)
