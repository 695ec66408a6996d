"""A database that is not there: statements are remembered, and answers and failures are given in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar, cast

import psycopg2
import psycopg2.extensions
import trio

from walstream.shell.database.postgres import PgConnection

T = TypeVar("T")


class FakeCursor:
    """One statement at a time; ``answers`` of its connection are rows, or errors to be raised."""

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self._row: Sequence[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> None:
        self._connection.executed.append((statement, tuple(parameters)))
        answer = self._connection.answers.popleft() if self._connection.answers else self._connection.usual
        if isinstance(answer, Exception):
            raise answer
        self._row = answer

    def fetchone(self) -> Sequence[object] | None:
        row, self._row = self._row, None
        return row

    def fetchall(self) -> list[Sequence[object]]:
        row = self.fetchone()
        return [] if row is None else [row]


class _Info:
    backend_pid = 1
    transaction_status = psycopg2.extensions.TRANSACTION_STATUS_IDLE


class FakeConnection:
    """As much of psycopg2's connection as our shell uses outside of replication."""

    def __init__(self, *answers: Sequence[object] | Exception | None, usual: Sequence[object] = ("ok",)) -> None:
        self.answers = deque(answers)
        self.usual = usual
        self.executed: list[tuple[str, tuple[object, ...]]] = []
        self.closed = 0
        self.cancelled = 0
        self.info = _Info()
        self.autocommit = False
        self.descriptor = -1

    def cursor(self) -> FakeCursor:
        return FakeCursor(self)

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        self.closed = 1

    def cancel(self) -> None:
        self.cancelled += 1

    def as_connection(self) -> PgConnection:
        return cast("PgConnection", self)


class FakeDatabase:
    """``Database`` without threads: every ``run`` gets the connection, unless a failure is due."""

    def __init__(self, connection: FakeConnection | None = None) -> None:
        self.connection = connection or FakeConnection()
        self.failures: deque[Exception] = deque()
        self.forgotten = 0
        self.before_answer: Callable[[], object] | None = None

    @property
    def contents(self) -> list[str]:
        """The last parameter of every statement."""
        return [cast("str", parameters[-1]) for _, parameters in self.connection.executed]

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.popleft()
        answer = work(self.connection.as_connection())
        if self.before_answer is not None:
            self.before_answer()
        return answer

    def forget_idle(self) -> None:
        self.forgotten += 1


def server_error(state: str | None, text: str = "told by the server", kind: Any = psycopg2.OperationalError) -> Any:
    """An error as psycopg2 raises it; its fields can be set by unpickling only."""
    error = kind(text)
    error.__setstate__({"pgcode": state, "pgerror": text})
    return error
