"""A connection that one part keeps for itself: statements in a thread, bounded in time; one that hangs is cut.

The pool for everybody else's statements is ``database.postgres``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg2
import trio

from walstream.errors import DatabaseSilent
from walstream.shell.database.postgres import PgConnection, cut, translate

T = TypeVar("T")


class Line:
    """One connection, used by one task at a time."""

    def __init__(self, connection: PgConnection) -> None:
        self.connection = connection
        self._threads = trio.CapacityLimiter(2)  # a goodbye may queue behind a statement that was given up
        self._under_way: set[object] = set()  # threads take themselves out: a set does that at one go, a number not

    @classmethod
    async def open(cls, open_connection: Callable[[], PgConnection]) -> Line:
        """Connect in a thread. Raises DatabaseUnreachable or DatabaseRefused. Cancelling it does not wait."""
        wanted = [True]

        def call() -> PgConnection:
            connection = open_connection()
            if not wanted:
                connection.close()
            return connection

        try:
            return cls(await trio.to_thread.run_sync(call, abandon_on_cancel=True))
        except trio.Cancelled:
            wanted.clear()
            raise

    async def do(self, work: Callable[[PgConnection], T], *, seconds: float) -> T:
        """Call ``work`` with the connection in a thread.

        Raises DatabaseUnreachable, also where no answer comes within ``seconds``, or DatabaseRefused. Cancelling it
        leaves the statement to itself: whether it took effect is unknown.
        """
        this = object()

        def call() -> T:
            self._under_way.add(this)
            try:
                return work(self.connection)
            finally:
                self._under_way.discard(this)

        try:
            with trio.fail_after(seconds):
                return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError as error:
            raise DatabaseSilent(f"no answer within {seconds:g} s") from error
        except psycopg2.Error as error:
            raise translate(error) from error

    def close(self) -> None:
        """End it without waiting. A statement under way fails, and its thread ends."""
        if not self._under_way:
            self.connection.close()
            return
        cut(self.connection)
