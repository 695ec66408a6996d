"""Reading the slot: connect, stream, hand every message to a ``Sink``, confirm what has left the window, begin again.

What a message means is decided behind the ``Sink`` (``pipeline``); which errors exist and how they are repaired, in
``postgres``. The rules that the stream follows, and why, are in docs/discussion/reading-the-slot.md.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import psycopg2
import psycopg2.extras
import structlog
import trio

from walstream.decoder import DECODERS
from walstream.errors import DatabaseRefused, DatabaseUnreachable, DecodeError, EnvironmentFailure, WalstreamError
from walstream.history.position import cluster_digest
from walstream.lsn import Lsn
from walstream.model import CatalogMiss
from walstream.shell.database import publications, slots
from walstream.shell.database.postgres import Database, connect, translate
from walstream.shell.database.rows import only
from walstream.shell.health import Health, ReaderState
from walstream.shell.supervise import keep_running
from walstream.telemetry.log import READER_FAILED, READER_STARTED, READER_STOPPED, SLOT_ABANDONED, SLOT_CREATED
from walstream.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

TICK_BYTES: Final = 256 * 1024
TICK_SECONDS: Final = 0.002
"""A tick ends when nothing is there to read, or after this much; see ``PAUSE_SECONDS``."""

GULP_MESSAGES_MIN: Final = 8
GULP_MESSAGES_MAX: Final = 256
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
"""Empty reads in a row, at one position, that make a storm: a server that shuts down asks again and again until we are
gone. Where others write what is not for us, it asks as often, but its position moves.
"""

STANDBY_SECONDS: Final = 1.0
"""Between tries to take over a slot that somebody else streams from."""

UNUSABLE_PLUGIN: Final = ("plugin_refused", "plugin_missing")
"""Reasons of a refusal that another plugin may mend."""

log = structlog.get_logger()


class Stream(NamedTuple):
    """What is known of a stream before its first message.

    ``cluster``: digest of system and timeline. ``server_start``: seconds since the epoch. ``is_new_slot``: whatever was
    committed before now is not in it. ``confirmed``: nothing that ends before it comes.
    """

    plugin: str
    cluster: str
    server_start: float
    is_new_slot: bool
    confirmed: Lsn = Lsn(0)


class Sink(Protocol):
    """Where messages go. Everything but ``open``, ``recover`` and ``flush`` is synchronous."""

    async def open(self, stream: Stream) -> Mapping[str, str]:
        """A stream begins: forget the transaction that was cut off. Returns the plugin's options.

        Raises WalstreamError.
        """
        ...

    def receive(self, payloads: Sequence[bytes], starts: Sequence[int]) -> None:
        """Take messages, in their order. ``starts``: their LSNs. They may be kept until all are taken.

        Raises DecodeError, with those before the broken message taken, or CatalogMiss: ``recover`` is due then.
        """
        ...

    async def recover(self, miss: CatalogMiss) -> None:
        """Load what ``receive`` missed, and take the message that misses it and all after it. Raises WalstreamError."""
        ...

    async def flush(self) -> None:
        """A tick ends: send what waits."""
        ...

    def confirmable(self, *, trailing: bool) -> Lsn:
        """The newest commit end that may be confirmed, 0 for none. ``trailing``: keep the window for a restart."""
        ...


class Reading(NamedTuple):
    """What the reader has to know from the configuration."""

    dsn: str
    slot: str
    decoder: str = "auto"
    schema: str = "realtime"

    @property
    def application_name(self) -> str:
        """Under which the stream is found in pg_stat_replication, and kept out of ``synchronous_standby_names``."""
        return f"walstream_stream_{self.slot}"[:63]


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
    stream's connection.
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
        open_connection: Callable[[], PgConnection] | None = None,
    ) -> None:
        self._reading = reading
        self._database = database or Database(reading.dsn, "walstream", size=1)
        self._open = open_connection or functools.partial(
            connect, reading.dsn, application_name=reading.application_name, replication=True
        )
        self._sink = sink
        self._health = health
        self._metrics = metrics
        self._trailing = trailing
        self._started = started
        self._stream_scope: trio.CancelScope | None = None
        self._leaving = ""
        self._confirmed = 0
        self._created = False  # a slot of this name by us: if it is missing later, somebody dropped it

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

    def _failed(self, error: WalstreamError, pause: float) -> None:
        reason = getattr(error, "reason", "")
        standby = reason == "slot_active"
        state: ReaderState = "standby" if standby else "retrying"
        if isinstance(error, DecodeError):
            self._metrics.decode_errors.inc()
        write = log.info if standby else log.warning
        # Said once per cause, not once per try.
        if (state, str(error)) != (self._health.reader, self._health.reader_reason):
            write(
                READER_FAILED, slot=self._reading.slot, code=error.code, reason=reason, error=error.message,
                repair=error.repair, seconds=round(pause, 1),
            )  # fmt: skip
        self._health.reader_is(state, str(error))  # with what is to be done about it

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
            stream, wal_sender_timeout = await self._database.run(self._prepare)
        finally:
            self._database.forget_idle()
        options = await self._sink.open(stream)
        # No thread is waited for where we are cancelled: connecting may take long, and creating a slot hours.
        opened = await trio.to_thread.run_sync(self._open, abandon_on_cancel=True)
        is_busy = False
        try:
            with trio.CancelScope() as self._stream_scope:
                if self._leaving:
                    raise DatabaseUnreachable(self._leaving)
                cursor: Any = opened.cursor()
                status_seconds = (
                    max(1, min(STATUS_SECONDS, int(wal_sender_timeout / 3))) if wal_sender_timeout else STATUS_SECONDS
                )
                is_busy = True
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
                is_busy = False
                log.info(READER_STARTED, slot=self._reading.slot, plugin=stream.plugin)
                self._metrics.reader_restarts.inc()
                self._health.reader_is("streaming")
                self._confirmed = 0
                self._started()
                await self._read(opened, cursor, wal_sender_timeout / 3 if wal_sender_timeout else 0.0)
        except psycopg2.Error as error:
            is_busy = False
            refused = translate(error)
            if getattr(refused, "reason", "") in UNUSABLE_PLUGIN and self._reading.decoder == "auto":
                await self._abandon(stream.plugin, refused)
            raise refused from error
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot keep a large transaction: {error}", repair="make room where temporary files go (TMPDIR)"
            ) from error
        finally:
            self._stream_scope = None
            if not is_busy:  # else a thread has it: closing would wait for that, and everything else with it
                opened.close()
            log.info(READER_STOPPED, slot=self._reading.slot)
        raise DatabaseUnreachable(self._leaving or "the stream was ended")

    async def _read(self, opened: PgConnection, cursor: Any, patience: float) -> None:
        """Read until cancelled. ``patience``: seconds without a read after which the stream is not touched again."""
        descriptor = opened.fileno()
        empty_reads = server_position = 0
        pace = _Pace(time.monotonic())
        last_read = _boot_clock()
        try:
            while True:
                if patience and _boot_clock() - last_read > patience:
                    # The process was stopped or the machine suspended: the server may have given up on us, and
                    # psycopg2 would answer a keepalive that waits here by confirming what it announces.
                    raise DatabaseUnreachable("the stream was not read for too long")
                count, is_more = await self._tick(cursor.read_message, pace.is_busy(time.monotonic()), patience)
                last_read = _boot_clock()
                if count:
                    pace.seen += count
                    empty_reads = 0
                    await self._sink.flush()
                    self._confirm(cursor)
                if is_more:
                    await trio.lowlevel.checkpoint()
                    continue
                with trio.move_on_after(IDLE_SECONDS) as waiting:
                    await trio.lowlevel.wait_readable(descriptor)
                if waiting.cancelled_caught:
                    empty_reads = 0
                    self._confirm(cursor)
                elif not count:
                    empty_reads = empty_reads + 1 if cursor.wal_end == server_position else 0
                    server_position = cursor.wal_end
                    if empty_reads > STORM_READS:
                        raise DatabaseUnreachable("the server is shutting down")
        finally:
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
            try:
                for message in islice(iter(read, None), gulp):
                    payload = message.payload
                    payloads.append(payload)
                    starts.append(message.data_start)
                    size += len(payload)
                    if size > TICK_BYTES:
                        break
            finally:  # if the stream breaks here, what came before that is handed over nevertheless
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

    async def _hand_over(self, payloads: list[bytes], starts: list[int], patience: float) -> None:
        try:
            self._sink.receive(payloads, starts)
        except CatalogMiss as miss:
            with trio.move_on_after(patience or STATUS_SECONDS) as scope:
                await self._sink.recover(miss)
            if scope.cancelled_caught:
                raise DatabaseUnreachable("the catalog did not answer in time") from miss

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

    # -- preparing, in a worker thread

    def _prepare(self, opened: PgConnection) -> tuple[Stream, float]:
        """Find or create the slot; what the stream is going to be, and ``wal_sender_timeout`` in seconds (0: none)."""
        with opened.cursor() as cursor:
            cursor.execute(
                "select pg_catalog.current_setting('server_encoding'), pg_catalog.current_database()::text,"
                " (select setting::float8 / 1000 from pg_catalog.pg_settings where name = 'wal_sender_timeout'),"
                " extract(epoch from pg_catalog.pg_postmaster_start_time())::float8,"
                " (select system_identifier::text from pg_catalog.pg_control_system()),"
                " (select timeline_id from pg_catalog.pg_control_checkpoint())"
            )
            encoding, database, timeout, started, system, timeline = only(cursor)
        if encoding != "UTF8":
            raise DatabaseRefused(
                f"the database's encoding is {encoding}",
                reason="encoding",
                repair="walstream needs a UTF8 database",
            )
        plugin, is_new, confirmed = self._slot(opened, database)
        return Stream(plugin, cluster_digest(system, timeline), started, is_new, confirmed), timeout

    def _slot(self, opened: PgConnection, database: str) -> tuple[str, bool, Lsn]:
        """The plugin of our slot, whether the slot had to be made, and from where on it tells."""
        reading = self._reading
        slot = slots.find(opened, reading.slot)
        if slot is not None:
            self._check(slot, database)
            if slot.wal_status != "lost":
                if slot.plugin == "pgoutput":
                    publications.sync_publications(opened, reading.schema)
                return slot.plugin, False, slot.confirmed_lsn or Lsn(0)
            slots.drop(opened, reading.slot)
        if reading.decoder != "wal2json":
            # Before the slot: a publication that is younger than the slot is unknown to the WAL between them.
            publications.sync_publications(opened, reading.schema)
        plugin, position = slots.create(opened, reading.slot, reading.decoder)
        log.info(SLOT_CREATED, slot=reading.slot, plugin=plugin, lsn=str(position), again=self._created)
        self._created = True
        return plugin, True, position

    async def _abandon(self, plugin: str, refused: WalstreamError) -> None:
        """Give up a slot that nobody can read until a superuser has acted; the next one takes the other plugin."""
        if plugin != "wal2json":
            return
        log.warning(
            SLOT_ABANDONED, slot=self._reading.slot, plugin=plugin, error=refused.message, repair=refused.repair
        )
        await self._database.run(lambda opened: slots.drop(opened, self._reading.slot))

    def _check(self, slot: slots.Slot, database: str) -> None:
        """Raises DatabaseRefused for a slot that is not for us, which is then left alone whatever its state."""
        if slot.database != database:
            raise DatabaseRefused(
                f"slot {slot.name} belongs to the database {slot.database}, not to {database}",
                reason="slot_database",
                repair="give this node another WALSTREAM_SLOT: names of slots are one for all databases of a server",
            )
        if slot.plugin not in DECODERS or self._reading.decoder not in ("auto", slot.plugin):
            raise DatabaseRefused(
                f"slot {slot.name} was made with {slot.plugin}, and WALSTREAM_DECODER is {self._reading.decoder}",
                reason="slot_plugin",
                repair=f"walstream slot drop {slot.name}, or another WALSTREAM_SLOT, or WALSTREAM_DECODER=auto",
            )
        if slot.active:
            raise DatabaseRefused(
                f"another process streams from slot {slot.name} (PostgreSQL's process {slot.active_pid})",
                reason="slot_active",
                repair="stop it, or give this node its own WALSTREAM_SLOT",
            )


def _boot_clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(_BOOT_CLOCK)


_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
