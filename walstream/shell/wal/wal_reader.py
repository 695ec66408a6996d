"""Reading the slot: connect, stream, hand every message to a ``Sink``, confirm what has left the window, begin again.

What a message means is decided behind the ``Sink`` (``pipeline``); which errors exist and how they are repaired, in
``postgres``. The rules that the stream follows, and why, are in docs/discussion/reading-the-slot.md.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg2
import psycopg2.extras
import structlog
import trio

from walstream.errors import (
    DatabaseRefused,
    DatabaseSilent,
    DatabaseUnreachable,
    DecodeError,
    EnvironmentFailure,
    OutOfMemory,
    WalstreamError,
)
from walstream.history.plan_log import Anew
from walstream.lsn import Lsn
from walstream.model import CatalogMiss
from walstream.shell.database import slots
from walstream.shell.database.postgres import Database, connect, cut, translate
from walstream.shell.health import Health, ReaderState
from walstream.shell.supervise import boot_clock, keep_running
from walstream.shell.wal.poison import Broken, Poison, UnderWay, is_undecodable
from walstream.shell.wal.slot_keeper import Read, Reading, SlotKeeper, Stream
from walstream.shell.wal.slot_life import SlotLife
from walstream.telemetry.log import POISON_MET, READER_FAILED, READER_STARTED, READER_STOPPED
from walstream.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

TICK_BYTES: Final = 256 * 1024
TICK_SECONDS: Final = 0.002
"""A tick ends when nothing is there to read, or after this much; see ``PAUSE_SECONDS``."""

GULP_MESSAGES_MIN: Final = 8
GULP_MESSAGES_MAX: Final = 48
"""Messages that are read before they are handed over together, and between looks at the clock.

As many as the tick has had before, so that it lasts no more than about twice its time however long each takes.
"""

PAUSE_SECONDS: Final = 0.0002
BUSY_SECONDS: Final = 0.01
BUSY_MESSAGES: Final = 200
"""Above so many messages in so many seconds a tick that finds nothing to read pauses once for more.

The server sends each message by itself: who keeps up is woken for every one of them, which costs more than the message.
"""

STATUS_SECONDS: Final = 10
"""Between status updates; less where ``wal_sender_timeout`` is short."""

IDLE_SECONDS: Final = 1.0
"""An idle stream is read this often: psycopg2 sends its status updates from within ``read_message`` only."""

STORM_READS: Final = 50
"""Keepalives in a row, at one position, that make a storm: a server that shuts down asks again and again until we are
gone. Where others write what is not for us, it asks as often, but its position moves; and where a large message comes
in pieces, there is nothing to read as often, but nothing was asked.
"""

SILENCE_SECONDS: Final = 5.0
"""Without a byte from a stream whose process has ended at the server; one that has just ended says why before."""

START_SECONDS: Final = 60.0
"""For the answer to START_REPLICATION, which the server gives before it reads anything."""

STANDBY_SECONDS: Final = 1.0
"""Between tries to take over a slot that somebody else streams from."""

UNUSABLE_PLUGIN: Final = ("plugin_refused", "plugin_missing")
"""Reasons of a refusal that another plugin may mend."""

log = structlog.get_logger()


class Sink(Protocol):
    """Where messages go. Everything but ``open``, ``recover`` and ``flush`` is synchronous."""

    async def open(self, stream: Stream) -> Mapping[str, str]:
        """A stream begins: forget the transaction that was cut off. Returns the plugin's options.

        Raises WalstreamError.
        """
        ...

    def receive(self, payloads: list[bytes], starts: Sequence[int]) -> None:
        """Take messages, in their order. ``starts``: their LSNs. The list becomes the sink's own.

        Raises DecodeError, with those before the broken message taken, or CatalogMiss: ``recover`` is due then.
        """
        ...

    async def recover(self, miss: CatalogMiss) -> None:
        """Load what ``receive`` missed, and take the message that misses it and all after it. Raises WalstreamError."""
        ...

    def broken(self, error: DecodeError) -> Broken | None:
        """What ``receive``, ``recover`` or ``skip`` could not take; None where it cannot be left out by itself."""
        ...

    def skip(self) -> None:
        """Leave the broken message out, and take all after it. Raises as ``receive`` does."""
        ...

    @property
    def newest(self) -> Lsn:
        """End of the newest commit that was taken."""
        ...

    @property
    def under_way(self) -> UnderWay | None:
        """The transaction that has begun and not ended."""
        ...

    async def flush(self) -> None:
        """A tick ends: send what waits."""
        ...

    def confirmable(self, *, trailing: bool) -> Lsn:
        """The newest commit end that may be confirmed, 0 for none. ``trailing``: keep the window for a restart."""
        ...


class _Frozen(DatabaseUnreachable):
    """The stream was not read for so long that somebody else may have the slot by now, and its clients the changes."""

    def __init__(self) -> None:
        super().__init__("the stream was not read for too long")


class _Pace:
    """Whether messages come so fast that being woken for each is waste. ``seen``: add to it what was read."""

    __slots__ = ("_busy", "_since", "seen")

    def __init__(self, now: float) -> None:
        self.seen = 0
        self._since = now
        self._busy = False

    def is_busy(self, now: float) -> bool:
        """As of the newest ``BUSY_SECONDS`` that are over. ``now``: monotonic seconds."""
        passed = now - self._since
        if passed > BUSY_SECONDS:
            self._busy = self.seen * BUSY_SECONDS > BUSY_MESSAGES * passed
            self._since, self.seen = now, 0
        return self._busy


class WalReader:
    """Keeps the stream of one slot running. ``trailing``: whether the confirmed position may stay behind at all.

    ``started`` is called at the start of each stream. ``database`` prepares the slot, ``open_connection`` opens the
    stream's connection and gets ``wal_sender_timeout`` in seconds.
    """

    def __init__(
        self,
        reading: Reading,
        sink: Sink,
        health: Health,
        metrics: Metrics,
        *,
        trailing: Callable[[], bool] = lambda: True,
        started: Callable[[], None] = lambda: None,
        database: Database | None = None,
        open_connection: Callable[[float], PgConnection] | None = None,
    ) -> None:
        self._reading = reading
        self._database = database or Database(reading.dsn, "walstream", size=1)
        self._open = open_connection or self._connect
        self._sink = sink
        self._health = health
        self._metrics = metrics
        self._trailing = trailing
        self._started = started
        self._stream_scope: trio.CancelScope | None = None
        self._leaving = ""
        self._heard_at = math.inf  # on trio's clock; when anything came from the server last
        self._was_seen = False  # the server has named the process of this very stream
        self._confirmed = 0
        self._keeper = SlotKeeper(reading)
        self._read_to = Read("", 0)
        self._gap = ""  # of a stream that could not be opened
        self._anew: Anew | None = None  # the same
        self.life = SlotLife(reading.slot, health, metrics)
        self.poison = Poison(self._database, metrics, slot=reading.slot, schema=reading.schema)
        self._plugin = ""

    async def run(self) -> None:
        """Stream for ever. Cancelling it confirms what may be confirmed and closes the connection."""
        try:
            await keep_running(self._stand_by_or_stream, failed=self._failed)
        finally:
            self._health.reader_is("stopped")

    def leave(self, reason: str) -> None:
        """End the stream now, because the server is going: fast shutdown waits for who has not confirmed all."""
        self._leaving = reason
        if self._stream_scope is not None:
            self._stream_scope.cancel()

    def held_by(self, pid: int | None) -> bool:
        """Take what the server says: which of its processes streams from the slot. Whether the stream was left for it.

        Where ours has ended, and nothing comes from it, not even its end, something between answers in its place. A
        server that is slow, or has nothing to say, still has the process.
        """
        if pid == self._keeper.own_pid:
            self._was_seen = True
        elif self._was_seen and trio.current_time() - self._heard_at > SILENCE_SECONDS:
            self.leave("nothing comes from the server, whose process for this stream has ended")
            return True
        return False

    def renew(self, turn: str, detail: str) -> None:
        """Give the slot up and go on with a new one: clients are told of the gap. ``turn``: see ``slot_life``."""
        self._keeper.renew(turn, detail)
        self.leave(detail)

    def _failed(self, error: WalstreamError, pause: float) -> None:
        reason = getattr(error, "reason", "")
        standby = reason == "slot_active"
        poisoned = self.poison.is_stuck and (isinstance(error, DecodeError) or is_undecodable(error))
        state: ReaderState = "standby" if standby else "poisoned" if poisoned else "retrying"
        repair = self.poison.repair() if poisoned else error.repair
        text = f"{error.message} ({repair})" if repair else error.message
        if standby:
            self.life.tell("standby", error.message)
        write = log.info if standby else log.warning
        # Said once per cause, not once per try.
        if (state, text) != (self._health.reader, self._health.reader_reason):
            write(
                POISON_MET if poisoned else READER_FAILED, slot=self._reading.slot, code=error.code, reason=reason,
                error=error.message, repair=repair, seconds=round(pause, 1),
            )  # fmt: skip
        self._health.reader_is(state, text)  # with what is to be done about it

    async def _stand_by_or_stream(self) -> None:
        """As ``_run_once``; while somebody else streams from the slot, look often whether it is free."""
        while True:
            try:
                await self._run_once()
            except DatabaseRefused as error:
                if error.reason != "slot_active":
                    raise
                self._failed(error, STANDBY_SECONDS)
                await trio.sleep(STANDBY_SECONDS)

    async def _run_once(self) -> None:
        self._leaving = ""
        try:
            stream, wal_sender_timeout = await self._database.run(self._keeper.prepare)
        finally:
            self._database.forget_idle()
        stream = self._judge(stream)
        options = await self._sink.open(stream)
        self._gap, self._anew = "", None
        # No thread is waited for where we are cancelled: connecting may take long, and creating a slot hours.
        opened = await trio.to_thread.run_sync(self._open, wal_sender_timeout, abandon_on_cancel=True)
        self._keeper.own_pid = opened.info.backend_pid
        self._plugin = stream.plugin
        is_busy = is_started = False
        try:
            with trio.CancelScope() as self._stream_scope:
                if self._leaving:
                    raise DatabaseUnreachable(self._leaving)
                cursor: Any = opened.cursor()
                status_seconds = (
                    max(1, min(STATUS_SECONDS, int(wal_sender_timeout / 3))) if wal_sender_timeout else STATUS_SECONDS
                )
                is_busy = True
                await self._start(opened, cursor, options, status_seconds)
                is_busy = False
                log.info(READER_STARTED, slot=self._reading.slot, plugin=stream.plugin)
                self._metrics.reader_restarts.inc()
                is_started = True
                if not self.poison.is_stuck:
                    self._health.reader_is("streaming")
                self._confirmed = 0
                self._started()
                await self._read(opened, cursor, wal_sender_timeout / 3 if wal_sender_timeout else 0.0)
        except psycopg2.Error as error:
            is_busy = False
            if _is_out_of_memory(error, opened):
                raise OutOfMemory from error
            refused = translate(error)
            if stream.plugin == "pgoutput" and error.pgcode == "42704" and "publication" in str(error):
                self._keeper.renew("unpublished", str(refused.message))
            if getattr(refused, "reason", "") in UNUSABLE_PLUGIN and self._reading.decoder == "auto":
                await self._abandon(stream.plugin, refused)
            if is_started and is_undecodable(refused):
                await self._leave_out_transaction(refused)
            raise refused from error
        except MemoryError as error:
            raise OutOfMemory from error
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot keep a large transaction: {error}", repair="make room where temporary files go (TMPDIR)"
            ) from error
        finally:
            self._stream_scope = None
            self._heard_at, self._was_seen = math.inf, False
            if not is_busy:  # else a thread has it: closing would wait for that, and everything else with it
                opened.close()
            log.info(READER_STOPPED, slot=self._reading.slot)
        raise DatabaseUnreachable(self._leaving or "the stream was ended")

    def _connect(self, wal_sender_timeout: float) -> PgConnection:
        # A process of the server that is stuck in a write, because we were suspended, heeds no timeout of its own.
        return connect(
            self._reading.dsn,
            application_name=self._reading.application_name,
            replication=True,
            stall_seconds=wal_sender_timeout,
        )

    async def _start(self, opened: PgConnection, cursor: Any, options: Mapping[str, str], status_seconds: int) -> None:
        try:
            with trio.fail_after(START_SECONDS):
                await trio.to_thread.run_sync(
                    functools.partial(
                        cursor.start_replication,
                        slot_name=self._reading.slot,
                        slot_type=psycopg2.extras.REPLICATION_LOGICAL,
                        # The slot's own position. From any other one psycopg2 would take the first keepalive for
                        # leave to confirm everything.
                        start_lsn=0,
                        options=dict(options),
                        decode=False,
                        status_interval=status_seconds,
                    ),
                    abandon_on_cancel=True,
                )
        except trio.TooSlowError as error:
            cut(opened)
            raise DatabaseSilent(f"the stream did not begin within {START_SECONDS:g} s") from error

    def _judge(self, stream: Stream) -> Stream:
        """The stream with its gap, by what was read before. Tells what became of the slot."""
        stream = self._read_to._replace(newest=self._sink.newest).judge(stream)
        lineage = stream.lineage
        if stream.gap or not self._read_to.cluster:
            self._read_to = Read(lineage.cluster, stream.confirmed)
        else:
            self._read_to = self._read_to.on(lineage)
        stream = stream._replace(gap=stream.gap or self._gap, anew=stream.anew or self._anew)
        self._gap, self._anew = stream.gap, stream.anew
        for turn, detail in stream.turns:
            self.life.tell(turn, detail)
        return stream

    async def _read(self, opened: PgConnection, cursor: Any, patience: float) -> None:
        """Read until cancelled. ``patience``: seconds without a read after which the stream is not touched again."""
        descriptor = opened.fileno()
        keepalives = server_position = 0
        heard_at = None  # when psycopg2 had read a whole message, keepalives among them
        pace = _Pace(time.monotonic())
        last_read = boot_clock()
        self._heard_at = trio.current_time()
        was_taken = True  # all that was read
        try:
            while True:
                if patience and boot_clock() - last_read > patience:
                    # The process was stopped or the machine suspended: the server may have given up on us, and
                    # psycopg2 would answer a keepalive that waits here by confirming what it announces.
                    raise _Frozen
                count, is_more = await self._tick(cursor.read_message, pace.is_busy(time.monotonic()), patience)
                if patience and boot_clock() - last_read > patience:
                    raise _Frozen
                last_read = boot_clock()
                self._has_read_to(cursor.wal_end)
                if count:
                    if self.poison.is_stuck and self._sink.newest > self.poison.stuck_after:
                        self.poison.passed()
                        self._health.reader_is("streaming")
                    pace.seen += count
                    keepalives = 0
                    self._heard_at = trio.current_time()
                    await self._sink.flush()
                    self._confirm(cursor)
                if is_more:
                    await trio.lowlevel.checkpoint()
                    continue
                with trio.move_on_after(IDLE_SECONDS) as waiting:
                    await trio.lowlevel.wait_readable(descriptor)
                if waiting.cancelled_caught:
                    keepalives = 0
                    self._confirm(cursor)
                    continue
                self._heard_at = trio.current_time()
                if not count and cursor.io_timestamp != heard_at:
                    heard_at = cursor.io_timestamp
                    keepalives = keepalives + 1 if cursor.wal_end == server_position else 0
                    server_position = cursor.wal_end
                    if keepalives > STORM_READS:
                        raise DatabaseUnreachable("the server is shutting down")
        except _Frozen:
            was_taken = False
            raise
        finally:
            # 0 after some errors, which is why it is asked for before, too.
            self._has_read_to(cursor.wal_end if was_taken else self._sink.newest)
            self._last_word(opened, cursor)

    async def _tick(self, read: Callable[[], Any], is_busy: bool, patience: float) -> tuple[int, bool]:
        """Hand over what is there to read. Returns the number of messages, and whether there may be more at once."""
        clock = time.monotonic
        tick_ends = clock() + TICK_SECONDS
        size = count = paused_at = 0
        while True:
            gulp = min(max(count, GULP_MESSAGES_MIN), GULP_MESSAGES_MAX)
            payloads: list[bytes] = []
            starts: list[int] = []
            begun = boot_clock()
            try:
                size += _gulp(read, gulp, TICK_BYTES - size, payloads, starts)
            finally:  # if the stream breaks here, what came before that is handed over nevertheless
                if patience and boot_clock() - begun > patience:
                    raise _Frozen
                await self._hand_over(payloads, starts, patience)
            count += len(payloads)
            if size > TICK_BYTES:
                return count, True
            if len(payloads) < gulp:  # nothing more is there
                if not is_busy or count == paused_at:
                    return count, False
                paused_at = count
                time.sleep(PAUSE_SECONDS)  # noqa: ASYNC251 - far less than a turn of the loop takes
            if clock() > tick_ends:
                return count, True

    def _has_read_to(self, position: int) -> None:
        """What ends before the position of any message was sent before it, and no more can have been confirmed."""
        if position > self._read_to.position:
            self._read_to = self._read_to._replace(position=position)

    async def _hand_over(self, payloads: list[bytes], starts: list[int], patience: float) -> None:
        if starts:
            self._has_read_to(starts[-1])
        try:
            self._sink.receive(payloads, starts)
        except (CatalogMiss, DecodeError) as trouble:
            with trio.move_on_after(patience or STATUS_SECONDS) as scope:
                await self._overcome(trouble)
            if scope.cancelled_caught:
                raise DatabaseUnreachable("the database did not answer in time") from trouble

    async def _overcome(self, trouble: CatalogMiss | DecodeError) -> None:
        """Load what is missing, and leave out what may be. Raises the DecodeError that is not let go."""
        while True:
            try:
                if isinstance(trouble, CatalogMiss):
                    await self._sink.recover(trouble.with_traceback(None))  # its frames hold on to the message
                else:
                    await self._leave_out(trouble)
            except (CatalogMiss, DecodeError) as another:
                if another is trouble:
                    raise
                trouble = another
            else:
                return

    async def _leave_out(self, error: DecodeError) -> None:
        self._metrics.decode_errors.inc()
        broken = self._sink.broken(error)
        if broken is None:
            self.poison.met(str(error), self._sink.newest)
            raise error
        await self._sink.flush()  # what was routed before goes before the word of the gap
        if not await self.poison.set_aside(broken, self._plugin, self._sink.newest):
            raise error
        self._sink.skip()

    async def _leave_out_transaction(self, error: WalstreamError) -> None:
        """PostgreSQL cannot decode the one that is under way."""
        assert isinstance(error, DatabaseRefused)
        await self._sink.flush()
        begun, newest = self._sink.under_way, self._sink.newest
        holder = self._keeper.own_pid
        self._has_read_to(await self.poison.leave_out(error, self._plugin, begun, newest, holder=holder))

    def _confirm(self, cursor: Any) -> None:
        trailing = self._trailing()
        position = self._sink.confirmable(trailing=trailing)
        if position > self._confirmed:
            self._confirmed = position
            # Stored, and sent with the next status update; at once where a user's commit waits for us.
            cursor.send_feedback(flush_lsn=position, force=not trailing)

    def _last_word(self, opened: PgConnection, cursor: Any) -> None:
        """Tell the server what may go before the connection closes. Its loss costs nothing but reading again."""
        if opened.closed or not self._confirmed:
            return
        try:
            cursor.send_feedback(flush_lsn=self._confirmed, force=True)
        except psycopg2.Error as error:
            log.debug(READER_STOPPED, slot=self._reading.slot, error=str(error).strip())

    async def _abandon(self, plugin: str, refused: WalstreamError) -> None:
        """Give up a slot that nobody can read until a superuser has acted; the next one takes the other plugin."""
        if plugin != "wal2json":
            return
        self.life.tell("abandoned", f"{plugin}: {refused.message}", repair=refused.repair)

        def drop(opened: PgConnection) -> None:
            slots.take_back(opened, self._reading.slot, self._keeper.own_pid)
            slots.drop(opened, self._reading.slot)

        await self._database.run(drop)


def _is_out_of_memory(error: psycopg2.Error, opened: PgConnection) -> bool:
    """Whether libpq had no memory for a message, which it says and psycopg2 does not pass on."""
    return error.pgcode is None and "memory" in (opened.info.error_message or "")


def _gulp(read: Callable[[], Any], count: int, room: int, payloads: list[bytes], starts: list[int]) -> int:
    """Read messages until there are ``count``, or more than ``room`` bytes. Returns the bytes of them.

    A function of its own, so that nothing but the list holds on to a large one.
    """
    size = 0
    for message in islice(iter(read, None), count):
        payload = message.payload
        payloads.append(payload)
        starts.append(message.data_start)
        size += len(payload)
        if size > room:
            break
    return size
