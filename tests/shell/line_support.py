"""A ``Line`` without threads and without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2
import trio

from tests.shell.database_support import FakeConnection
from walstream.shell.database.postgres import PgConnection, translate

T = TypeVar("T")


class FakeLine:
    """Statements are done at once. ``delay_seconds``: by trio's clock, before each."""

    opened: int = 0

    def __init__(self, connection: FakeConnection | None = None, delay_seconds: float = 0.0) -> None:
        self.fake = connection or FakeConnection()
        self.connection = self.fake.as_connection()
        self.delay_seconds = delay_seconds
        self.is_closed = False

    async def open(self, open_connection: Callable[[], PgConnection]) -> FakeLine:
        """As the class method: this very line, once ``open_connection`` lets it."""
        await trio.lowlevel.checkpoint()
        open_connection()
        self.opened += 1
        self.is_closed = False
        return self

    async def do(self, work: Callable[[Any], T], *, seconds: float) -> T:
        await trio.sleep(self.delay_seconds)
        try:
            return work(self.connection)
        except psycopg2.Error as error:
            raise translate(error) from error

    def close(self) -> None:
        self.is_closed = True
