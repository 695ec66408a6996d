"""The speaking side of NOTIFY: group commit over one connection, paced.

While one statement is under way the next batch collects with whoever is asked for it. Every transaction that notifies
takes one lock of the whole server at its commit, so there are few of them, however much is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import psycopg2
import trio
from psycopg2 import sql

from walstream.errors import DatabaseRefused, WalstreamError
from walstream.shell.channels.line import Line
from walstream.shell.database.postgres import PgConnection
from walstream.shell.supervise import keep_running

PACE_SECONDS: Final = 0.0025
"""Between the starts of two statements: 400 a second at most. One that comes alone does not wait."""

LATE_SECONDS: Final = 0.001
"""By so much timers are late; it is made up for, or it would add up."""

STATEMENT_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 1.0
GOODBYE_SECONDS: Final = 0.9

_SAY: Final = """
{stored}select count(pg_catalog.pg_notify(said.channel, said.payload))
  from unnest(%(channels)s::text[], %(payloads)s::text[]) as said(channel, payload)
"""
_STORED: Final = """
with kept as (
    insert into {payloads} (id, node_id, payload)
    select kept.id, %(node)s, kept.content from unnest(%(ids)s::uuid[], %(contents)s::bytea[]) as kept(id, content)
        on conflict (id) do nothing
)
"""


class Saying(NamedTuple):
    """One notification. ``content``: what is stored under the uuid ``stored`` in the same transaction, if any."""

    channel: str
    payload: str
    stored: str = ""
    content: bytes = b""


class Speaker(Protocol):
    """Who has something to say. All but ``settle`` are called in trio's thread and must not block."""

    def settle(self, connection: PgConnection) -> bool:
        """In a thread, with each new connection: whether one may speak on it. Asked again every second until so."""
        ...

    def reached(self) -> None:
        """There is a connection, and one may speak."""
        ...

    def lost(self, error: WalstreamError, seconds: float) -> None:
        """There is none; the next try is in so many seconds."""
        ...

    def take(self, *, last: bool) -> list[Saying]:
        """What to say in one transaction; [] for nothing. ``last``: there will be no other one."""
        ...

    def unsaid(self, sayings: list[Saying], error: WalstreamError) -> None:
        """The transaction failed, or, where the connection was lost over it, may have failed."""
        ...


class NotifyMouth:
    """Says what the speaker has, whenever ``wake`` was called. ``pace_seconds``: between two transactions."""

    def __init__(
        self,
        open_connection: Callable[[], PgConnection],
        speaker: Speaker,
        *,
        schema: str,
        node: str,
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self.transactions = 0
        self.pid = 0  # of the backend that speaks for us, 0 for none
        self._open_connection = open_connection
        self._speaker = speaker
        self._node = node
        self._pace_seconds = pace_seconds
        stored = sql.SQL(_STORED).format(payloads=sql.Identifier(schema, "bus_payloads"))
        self._say_plainly = sql.SQL(_SAY).format(stored=sql.SQL(""))
        self._say_and_store = sql.SQL(_SAY).format(stored=stored)
        self._line: Line | None = None
        self._wanted = trio.Event()

    def wake(self) -> None:
        """There is something to say."""
        self._wanted.set()

    async def run(self) -> None:
        """Speak until cancelled, through every loss of the connection; then say the last within a second."""
        await keep_running(self._speak, failed=self._speaker.lost)

    async def do(self, work: Callable[[PgConnection], object]) -> None:
        """Another statement on the same connection; nothing happens while there is none. Raises as ``Line.do``."""
        if self._line is not None:
            await self._line.do(work, seconds=STATEMENT_SECONDS)

    async def _speak(self) -> None:
        line = await Line.open(self._open_connection)
        try:
            while not await line.do(self._settle, seconds=STATEMENT_SECONDS):  # noqa: ASYNC110 - the server has no event
                await trio.sleep(SETTLE_SECONDS)
            self._line = line
            self.pid = line.connection.info.backend_pid
            self._speaker.reached()
            try:
                await self._say_for_ever(line)
            except trio.Cancelled:
                await self._say_goodbye(line)
                raise
        finally:
            self._line = None
            self.pid = 0
            line.close()

    def _settle(self, connection: PgConnection) -> bool:
        with connection.cursor() as cursor:
            # Nothing waits for a disk or a standby: whoever hears it has not been promised more.
            cursor.execute("set synchronous_commit = off")
        return self._speaker.settle(connection)

    async def _say_for_ever(self, line: Line) -> None:
        next_at = 0.0
        while True:
            await self._wanted.wait()
            await trio.sleep(max(0.0, next_at - trio.current_time()))
            self._wanted = trio.Event()
            next_at = max(next_at, trio.current_time() - LATE_SECONDS) + self._pace_seconds
            sayings = self._speaker.take(last=False)
            if not sayings:
                continue
            self._wanted.set()  # there may be more than one transaction takes
            try:
                await line.do(partial(self._say, sayings), seconds=STATEMENT_SECONDS)
            except DatabaseRefused as error:
                self._speaker.unsaid(sayings, error)
            except WalstreamError as error:
                self._speaker.unsaid(sayings, error)
                raise
            else:
                self.transactions += 1

    async def _say_goodbye(self, line: Line) -> None:
        with trio.move_on_after(GOODBYE_SECONDS, shield=True), contextlib.suppress(WalstreamError):
            while sayings := self._speaker.take(last=True):
                await line.do(partial(self._say, sayings), seconds=GOODBYE_SECONDS)

    def _say(self, sayings: Sequence[Saying], connection: PgConnection) -> None:
        values: dict[str, object] = {
            "channels": [saying.channel for saying in sayings],
            "payloads": [saying.payload for saying in sayings],
        }
        stored = [saying for saying in sayings if saying.stored]
        if stored:
            values["node"] = self._node
            values["ids"] = [saying.stored for saying in stored]
            values["contents"] = [psycopg2.Binary(saying.content) for saying in stored]
        with connection.cursor() as cursor:
            cursor.execute(self._say_and_store if stored else self._say_plainly, values)
