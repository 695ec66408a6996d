"""Watches our slot and our place among the standbys, and notices at once when the server wants us gone.

One ordinary connection is kept for it. PostgreSQL ends such connections first when it shuts down and then waits for
whoever streams WAL, so the end of this one is the signal to close the stream. What may be confirmed is in ``ring``.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog
import trio

from walstream.errors import DatabaseSilent, DatabaseUnreachable, WalstreamError
from walstream.history.budget import Budget, Gauge
from walstream.lsn import Lsn
from walstream.shell.channels.line import Line
from walstream.shell.database import open_transactions
from walstream.shell.database.open_transactions import OpenTransaction
from walstream.shell.database.postgres import PgConnection
from walstream.shell.health import Health, SlotFacts
from walstream.shell.supervise import next_delay
from walstream.telemetry.log import SLOT_FELL_BEHIND, SLOT_WAITS, STREAM_HELD_COMMITS
from walstream.telemetry.metrics import Metrics

LOOK_SECONDS: Final = 2.0

ANSWER_SECONDS: Final = 5.0
"""For one look. A connection that owes the answer for longer is given up for another one, which harms nobody."""

WINDOW_DIVISOR: Final = 4
"""The history keeps back at most this part of ``max_slot_wal_keep_size``: the rest is for the user's transactions."""

SLACK_BYTES: Final = 64 * 1024 * 1024
"""WAL that may be kept back beyond twice the window before it is an alarm: a slot's start moves in steps."""

_REPAIRS: Final = {
    STREAM_HELD_COMMITS: "name the real standbys in synchronous_standby_names: this stream is no copy of the data",
    SLOT_FELL_BEHIND: "look for a reader that does not keep up, or for a long transaction in pg_stat_activity and"
    " pg_prepared_xacts",
}

_STANDBY_NAME: Final = re.compile(r'"((?:[^"]|"")*)"|([^\s,()"]+)')

log = structlog.get_logger()

# wal_status and safe_wal_size: PostgreSQL 17, 52.20 pg_replication_slots.
_LOOK: Final = """
select s.plugin, s.active_pid, s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status, s.safe_wal_size,
       pg_catalog.pg_wal_lsn_diff(now_at.lsn, s.confirmed_flush_lsn)::bigint,
       pg_catalog.pg_wal_lsn_diff(now_at.lsn, s.restart_lsn)::bigint,
       r.sync_state, r.application_name,
       pg_catalog.current_setting('synchronous_standby_names'),
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size')),
       (pg_catalog.to_jsonb(s) ->> 'failover')::boolean
  from pg_catalog.pg_replication_slots s
 cross join (
    select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                else pg_catalog.pg_current_wal_lsn() end as lsn
 ) now_at
  left join pg_catalog.pg_stat_replication r on r.pid = s.active_pid
 where s.slot_name = %s
"""


class Look(NamedTuple):
    """One answer of ``_LOOK``, in its order. Bytes are None, and positions too, where the server does not say.

    ``sync_state`` and ``application_name``: of whoever streams, None if nobody does. ``standby_names``:
    ``synchronous_standby_names``. ``keep_bytes``: ``max_slot_wal_keep_size``, negative for no limit. ``failover``: None
    before PostgreSQL 17. ``keeper``: the open transaction that keeps WAL back, or after which the slot will be made;
    asked for where there may be one.
    """

    plugin: str
    active_pid: int | None
    restart_lsn: Lsn | None
    confirmed_lsn: Lsn | None
    wal_status: str | None
    safe_bytes: int | None
    lag_bytes: int | None
    retained_bytes: int | None
    sync_state: str | None
    application_name: str | None
    standby_names: str
    keep_bytes: int
    failover: bool | None = None
    keeper: OpenTransaction | None = None

    @property
    def holds_commits(self) -> bool:
        """Whether commits of the server's users wait, or may soon wait, for what this stream confirms.

        A stream that has confirmed nothing yet is shown as ``async`` while they wait for it already, so the names are
        looked at, too.
        """
        return self.sync_state is not None and (
            self.sync_state != "async" or names_standby(self.standby_names, self.application_name or "")
        )

    @property
    def is_in_the_making(self) -> bool:
        """Whether it waits for the transactions that are open."""
        return self.confirmed_lsn is None and not self.is_lost

    @property
    def is_lost(self) -> bool:
        """Whether WAL that the slot needs has been removed: it can never stream again."""
        return self.wal_status == "lost"

    def window(self, wanted: int) -> int:
        """Bytes of WAL that the history may keep back, where ``wanted`` are configured."""
        return wanted if self.keep_bytes < 0 else min(wanted, self.keep_bytes // WINDOW_DIVISOR)

    def is_behind(self, window: int) -> bool:
        """Whether so much WAL is kept back that somebody should know."""
        if self.wal_status == "unreserved":
            return True
        return self.retained_bytes is not None and self.retained_bytes > 2 * window + SLACK_BYTES


def names_standby(standby_names: str, application_name: str) -> bool:
    """Whether ``synchronous_standby_names`` means a standby of this name (PostgreSQL 17, 19.6.2; case is ignored)."""
    names = {quoted.replace('""', '"') or bare for quoted, bare in _STANDBY_NAME.findall(standby_names)}
    return "*" in names or application_name.lower() in {name.lower() for name in names}


def look(connection: PgConnection, slot: str) -> Look | None:
    """What the server says about the slot; None if there is none of that name. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_LOOK, (slot,))
        row = cursor.fetchone()
    if row is None:
        return None
    restart, confirmed = (None if text is None else Lsn.parse(text) for text in row[2:4])
    return Look(row[0], row[1], restart, confirmed, *row[4:])


class SlotWatch:
    """Looks at the slot every ``seconds`` and remembers the newest answer.

    ``open_connection`` blocks; the connection is the watch's own. ``wal_bytes``: what is configured for the history.
    ``on_server_leaving`` is called, once per connection, when the server ended ours; it must not block. ``on_look`` is
    called after every answer.
    """

    def __init__(
        self,
        open_connection: Callable[[], PgConnection],
        slot: str,
        health: Health,
        *,
        wal_bytes: int,
        on_server_leaving: Callable[[WalstreamError], None],
        on_look: Callable[[Look | None], None] | None = None,
        metrics: Metrics | None = None,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._slot = slot
        self._health = health
        self._wal_bytes = wal_bytes
        self._on_server_leaving = on_server_leaving
        self._on_look = on_look
        self._metrics = metrics
        self._seconds = seconds
        self._open = open_connection
        self._pause = trio.CancelScope()
        self._hurry = False
        self._next = trio.Event()
        self._delay = 0.0
        self._alarm = ""
        self.ask_also: Callable[[PgConnection], object] = lambda connection: None
        """Further questions after each look, in the same thread and time; may be set."""
        self.gauge = Gauge()
        """Measures the WAL budget; ``own_bytes`` of it may be set."""
        self.newest: Look | None = None
        """The newest answer; None before the first, and while the slot does not exist."""

    @property
    def restart_lsn(self) -> Lsn:
        """From where the slot keeps WAL back; 0 if unknown."""
        return (self.newest and self.newest.restart_lsn) or Lsn(0)

    @property
    def confirmed_lsn(self) -> Lsn:
        """What the slot has confirmed; 0 if unknown."""
        return (self.newest and self.newest.confirmed_lsn) or Lsn(0)

    @property
    def must_not_trail(self) -> bool:
        """Whether every commit has to be confirmed at once, for the server's users wait for it."""
        return self.newest is not None and self.newest.holds_commits

    @property
    def wal_bytes(self) -> int:
        """How many bytes of WAL the history may keep back now."""
        if self.newest is None:
            return self._wal_bytes
        return 0 if self.newest.holds_commits else self.newest.window(self._wal_bytes)

    async def run(self) -> None:
        """Watch for ever. Survives a database that is away; cancelling it gives the connection up."""
        while True:
            try:
                line = await Line.open(self._open)
            except WalstreamError as error:
                # Not the signal: who streams while no further connection is to be had streams on.
                self._health.database_down(str(error))
            else:
                failure = await self._watch(line)
                line.close()
                self._health.database_down(str(failure))
                # A slow server is none that leaves, nor is one to which the way was lost.
                if isinstance(failure, DatabaseUnreachable) and not isinstance(failure, DatabaseSilent):
                    self._on_server_leaving(failure)
            self._delay = next_delay(self._delay, spread=random.random())  # noqa: S311 - jitter, no secret
            await self._rest(self._delay)

    def look_now(self) -> None:
        """Do not wait for the interval: the stream has started, or the slot was made."""
        self._hurry = True
        self._pause.cancel()

    async def looked(self) -> Look | None:
        """The next answer."""
        await self._next.wait()
        return self.newest

    async def _watch(self, line: Line) -> WalstreamError:
        """Look until the connection fails; returns the error."""
        while True:
            self._hurry = False
            try:
                answer = await line.do(self._ask, seconds=ANSWER_SECONDS)
            except WalstreamError as error:
                return error
            self._take(answer)
            # Readable between questions: the server ends the connection, or tells of a changed setting. Asking tells.
            await self._rest(self._seconds, line.connection.fileno())

    def _ask(self, connection: PgConnection) -> Look | None:
        answer = look(connection, self._slot)
        if answer is not None:
            keeper = open_transactions.keeper(
                connection,
                is_made=not answer.is_in_the_making,
                retained_bytes=answer.retained_bytes,
                lag_bytes=answer.lag_bytes,
            )
            answer = answer._replace(keeper=keeper)
        self.ask_also(connection)
        return answer

    async def _rest(self, seconds: float, descriptor: int | None = None) -> None:
        with trio.move_on_after(seconds) as self._pause:
            if self._hurry:
                await trio.lowlevel.checkpoint()
            elif descriptor is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(descriptor)

    def _take(self, answer: Look | None) -> None:
        self.newest = answer
        self._delay = 0.0
        self._health.database_up()
        if answer is None:
            self._health.slot = None
        else:
            budget = self.gauge.measure(
                trio.current_time(), answer.wal_status, answer.retained_bytes, answer.safe_bytes, answer.keep_bytes
            )
            self._health.slot = SlotFacts(
                name=self._slot,
                plugin=answer.plugin,
                active=answer.active_pid is not None,
                lag_bytes=answer.lag_bytes,
                wal_status=answer.wal_status,
                retained_bytes=answer.retained_bytes,
                safe_bytes=answer.safe_bytes,
                failover=answer.failover,
                budget=budget,
                is_made=not answer.is_in_the_making,
                kept_by=None if answer.keeper is None else f"{answer.keeper}: {answer.keeper.repair}",
            )
            if self._metrics is not None:
                self._metrics.slot_lag_bytes.set(answer.lag_bytes or 0)
                self._metrics.slot_retained_bytes.set(answer.retained_bytes or 0)
                self._metrics.slot_left_bytes.set(math.inf if budget.left_bytes is None else budget.left_bytes)
                self._metrics.slot_left_seconds.set(math.inf if budget.left_seconds is None else budget.left_seconds)
            self._warn(answer, budget)
        reached, self._next = self._next, trio.Event()
        reached.set()
        if self._on_look is not None:
            self._on_look(answer)

    def _warn(self, answer: Look, budget: Budget) -> None:
        """Log each trouble when it begins."""
        alarm = ""
        if answer.is_lost:
            pass  # told by the reader, which makes a new one
        elif answer.holds_commits:
            alarm = STREAM_HELD_COMMITS
        elif budget.is_alarming or answer.is_behind(answer.window(self._wal_bytes)):
            alarm = SLOT_FELL_BEHIND
        elif answer.is_in_the_making and answer.keeper is not None:
            alarm = SLOT_WAITS
        keeper = answer.keeper
        if alarm and alarm != self._alarm:
            log.warning(
                alarm,
                slot=self._slot,
                wal_status=answer.wal_status,
                retained_bytes=answer.retained_bytes,
                safe_bytes=answer.safe_bytes,
                sync_state=answer.sync_state,
                budget=str(budget),
                kept_by=None if keeper is None else str(keeper),
                repair=_REPAIRS[alarm] if keeper is None or alarm == STREAM_HELD_COMMITS else keeper.repair,
            )
        self._alarm = alarm
