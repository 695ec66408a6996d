"""Heartbeats: a small logical message of ours through the WAL and back proves that the slot streams, and how fast.

They also give an idle database something to confirm. Who reads the WAL calls ``returned``; what the answers mean for
readiness is in ``health``.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import psycopg2
import structlog
import trio

from walstream.decoder import MESSAGE_PREFIX
from walstream.errors import DatabaseRefused, DatabaseUnreachable, EnvironmentFailure, WalstreamError
from walstream.shell.database.postgres import PgConnection
from walstream.shell.database.rows import scalar
from walstream.shell.health import STALE_HEARTBEATS, Health
from walstream.shell.supervise import PERMANENT_DELAY_SECONDS, next_delay
from walstream.telemetry.log import DATABASE_LOST, DATABASE_REACHED, HEARTBEAT_MISSED, HEARTBEAT_RETURNED
from walstream.telemetry.metrics import Metrics

JITTER: Final = 0.1
"""Part of the interval that is taken away at random, so that nodes do not beat together."""

UNDER_WAY_MAX: Final = 64
"""Heartbeats whose times are remembered; with so many under way only the newest are of interest."""

REASON_NO_WRITES: Final = "no_writes"

# In one statement: the commit waits for this server's disk only. A synchronous standby that hangs, or that our own
# stream was made by mistake, must not keep a heartbeat from ending. CASE keeps the call from a server in recovery.
_EMIT: Final = """
select case when pg_catalog.pg_is_in_recovery() then null
            else pg_catalog.set_config('synchronous_commit', 'local', true)
                 || pg_catalog.pg_logical_emit_message(true, %s::text, %s::text)::text end
"""

T = TypeVar("T")

log = structlog.get_logger()


class Statements(Protocol):
    """What runs SQL for us: ``postgres.Database``."""

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` with a connection in autocommit. Raises DatabaseUnreachable or DatabaseRefused."""
        ...

    def forget_idle(self) -> None:
        """Close idle connections: the server has gone."""
        ...


def emit(connection: PgConnection, content: str) -> None:
    """Write one message of ours to the WAL and wait until it is on the server's disk.

    Raises DatabaseRefused with reason ``no_writes`` from a server that takes none, psycopg2.Error else.
    """
    with connection.cursor() as cursor:
        try:
            cursor.execute(_EMIT, (MESSAGE_PREFIX, content))
        except psycopg2.errors.ReadOnlySqlTransaction as error:
            raise _no_writes("the server or this role is read-only") from error
        if scalar(cursor) is None:
            raise _no_writes("the server is in recovery: a standby")


def _no_writes(cause: str) -> DatabaseRefused:
    return DatabaseRefused(
        f"{cause}, and heartbeats have to be written",
        sqlstate="25006",
        reason=REASON_NO_WRITES,
        repair="WALSTREAM_DATABASE_URL must lead to the primary; with several hosts: target_session_attrs=read-write",
    )


class Heartbeat:
    """Emits a heartbeat every ``seconds`` and recognises those that come back.

    A message names the node and this very object by chance, so that heartbeats of other nodes, and those that an
    earlier process left in the history, are never taken for ours. ``emitted`` gets each content once it is committed,
    which may be after it came back.
    """

    def __init__(
        self,
        database: Statements,
        health: Health,
        *,
        node: str,
        seconds: float = 10.0,
        metrics: Metrics | None = None,
        emitted: Callable[[bytes], None] | None = None,
    ) -> None:
        self._database = database
        self._health = health
        self._metrics = metrics
        self._emitted = emitted
        self._seconds = seconds
        name = node.encode("ascii", "backslashreplace").decode("ascii").replace("\0", "")
        self._prefix = f"heartbeat {name} {secrets.token_hex(6)} "
        self._own = self._prefix.encode()
        self._count = 0
        self._newest_returned = 0
        self._under_way: dict[int, float] = {}  # number → trio's clock just before it was emitted
        self._wanted = trio.Event()
        self._trouble: str | None = None
        self._missed = False

    async def run(self) -> None:
        """Beat at once, then every ``seconds`` and whenever ``beat_now`` asks, for ever.

        Survives a database that is away. Cancelling it cancels the statement under way.
        """
        delay = 0.0
        while True:
            self._wanted = trio.Event()
            try:
                await self._beat()
            except WalstreamError as error:
                delay = next_delay(delay, spread=random.random())  # noqa: S311 - jitter, no secret
                patient = isinstance(error, EnvironmentFailure) and not error.retry
                pause = PERMANENT_DELAY_SECONDS if patient else delay
                self._failed(error, pause)
            else:
                delay = 0.0
                pause = self._seconds * (1.0 - JITTER * random.random())  # noqa: S311 - jitter, no secret
                self._succeeded()
            with trio.move_on_after(pause):
                await self._wanted.wait()

    def beat_now(self) -> None:
        """Do not wait for the interval: the stream has started, or the database is back."""
        self._wanted.set()

    def returned(self, content: bytes) -> bool:
        """Take a message with our prefix that came by the WAL; whether it is ours and newer than all before it."""
        if not content.startswith(self._own):
            return False
        text = content[len(self._own) :]
        number = int(text) if text.isdigit() and len(text) < 20 else 0
        if not self._newest_returned < number <= self._count:
            return False
        self._newest_returned = number
        emitted_at = self._under_way.get(number)
        for known in [known for known in self._under_way if known <= number]:
            del self._under_way[known]
        self._health.heartbeat_received()
        if emitted_at is not None:
            seconds = trio.current_time() - emitted_at
            # The board has the time of the newest one emitted; with several under way that is not this one's.
            self._health.round_trip_seconds = seconds
            if self._metrics is not None:
                self._metrics.heartbeat_seconds.set(seconds)
            if self._missed:
                self._missed = False
                log.info(HEARTBEAT_RETURNED, seconds=round(seconds, 3))
        return True

    async def _beat(self) -> None:
        self._look_for_missed()
        number = self._count = self._count + 1
        content = f"{self._prefix}{number}"
        # Remembered first: it may be back before the statement's answer is.
        self._under_way[number] = trio.current_time()
        if len(self._under_way) > UNDER_WAY_MAX:
            del self._under_way[next(iter(self._under_way))]
        try:
            await self._database.run(lambda connection: emit(connection, content))
        except WalstreamError:
            # Whether it was committed is unknown. If it comes back it counts, without a time.
            self._under_way.pop(number, None)
            raise
        self._health.heartbeat_emitted()
        if self._emitted is not None:
            self._emitted(content.encode())

    def _look_for_missed(self) -> None:
        """Say once that heartbeats do not come back."""
        oldest = next(iter(self._under_way.values()), None)
        if oldest is None or self._missed:
            return
        seconds = trio.current_time() - oldest
        if seconds > STALE_HEARTBEATS * self._seconds:
            self._missed = True
            log.warning(HEARTBEAT_MISSED, seconds=round(seconds, 1), under_way=len(self._under_way))

    def _succeeded(self) -> None:
        self._health.database_up()
        if self._trouble is not None:
            self._trouble = None
            log.info(DATABASE_REACHED)

    def _failed(self, error: WalstreamError, pause: float) -> None:
        self._health.database_down(str(error))
        if isinstance(error, DatabaseUnreachable):
            self._database.forget_idle()
        trouble = (error.reason if isinstance(error, DatabaseRefused) else "") or error.code
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(DATABASE_LOST, error=str(error), code=trouble, retry_seconds=round(pause, 1))
