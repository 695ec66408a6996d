"""The listening side of NOTIFY: one connection, several channels, reconnected for ever.

What a notification means is its receiver's business. This module never runs a statement while one waits for news:
notifications arrive between statements only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import psycopg2
import trio
from psycopg2 import sql

from walstream.errors import WalstreamError
from walstream.shell.channels.line import Line
from walstream.shell.database.postgres import PgConnection, translate
from walstream.shell.database.rows import only, scalar
from walstream.shell.supervise import keep_running

PROBE_SECONDS: Final = 5.0
"""For an answer to SELECT 1; a connection that owes it for longer is dead."""

# Each LISTEN is a transaction; what the answer says of the clock is of after the last.
_FACTS: Final = """
select pg_catalog.current_database(), extract(epoch from pg_catalog.clock_timestamp())::float8
"""


class Heard(NamedTuple):
    """One notification. ``pid``: of the backend that sent it."""

    channel: str
    payload: str
    pid: int


class Place(NamedTuple):
    """Where one listens: the database's name and its clock, seconds since the Unix epoch."""

    database: str
    clock: float


class NotifyEar:
    """Listens to ``channels`` (names of at most 63 bytes, which may be added until ``run``).

    ``reached`` is called when everything committed from now on will be heard, ``lost`` when that is over, and
    ``received`` with notifications in order of their commits. ``silence_seconds``: after so long without any the
    connection is asked whether it lives.
    """

    def __init__(
        self,
        open_connection: Callable[[], PgConnection],
        *,
        received: Callable[[Line, Sequence[Heard]], Awaitable[None]],
        reached: Callable[[Place], None],
        lost: Callable[[], None],
        failed: Callable[[WalstreamError, float], None],
        silence_seconds: float,
    ) -> None:
        self.channels: list[str] = []
        self._open_connection = open_connection
        self._received = received
        self._reached = reached
        self._lost = lost
        self._failed = failed
        self._silence_seconds = silence_seconds

    async def run(self) -> None:
        """Listen until cancelled, through every loss of the connection."""
        await keep_running(self._listen, failed=self._failed)

    async def _listen(self) -> None:
        line = await Line.open(self._open_connection)
        try:
            self._reached(await line.do(self._begin, seconds=PROBE_SECONDS))
            try:
                await self._hear(line)
            finally:
                self._lost()
        except psycopg2.Error as error:
            raise translate(error) from error
        finally:
            line.close()

    def _begin(self, connection: PgConnection) -> Place:
        with connection.cursor() as cursor:
            for channel in self.channels:
                cursor.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            cursor.execute(_FACTS)
            return Place(*only(cursor))

    async def _hear(self, line: Line) -> None:
        connection = line.connection
        while True:
            if not connection.notifies:
                with trio.move_on_after(self._silence_seconds) as patience:
                    await trio.lowlevel.wait_readable(connection.fileno())
                if patience.cancelled_caught:
                    await line.do(_probe, seconds=PROBE_SECONDS)
                else:
                    connection.poll()
            news = [Heard(one.channel, one.payload, one.pid) for one in connection.notifies]
            connection.notifies.clear()
            if news:
                await self._received(line, news)
            await trio.lowlevel.checkpoint()


def _probe(connection: PgConnection) -> object:
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        return scalar(cursor)
