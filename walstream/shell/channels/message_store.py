"""Broadcasts that are kept: many are stored by one commit, and each sender is told what became of the own one.

Statements are in ``shell.database.message_rows``; what the WAL says of them comes through ``wal_feed``. The promises
are told in docs/discussion/stored-messages.md.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import psycopg2
import structlog
import trio

from walstream.bus.items import BroadcastItem
from walstream.channel.since import Position
from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.model import Snapshot, Transaction
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.bus import Bus
from walstream.shell.channels.message_upkeep import MessageUpkeep
from walstream.shell.channels.recent_ids import FreshMessages, RecentIds
from walstream.shell.database import message_rows
from walstream.shell.database.join_facts import load_snapshot
from walstream.shell.database.message_rows import NewMessage, Notification, Page
from walstream.shell.database.postgres import Database, PgConnection, one_snapshot, translate
from walstream.shell.database.rows import is_text
from walstream.telemetry.log import MESSAGES_UNSTORED

WAIT_SECONDS: Final = 5.0
"""How long a sender waits for its commit; official clients give up after ten."""

QUEUE_MAX: Final = 20_000
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
BATCH_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
REPLAY_MAX: Final = 1000

UNREACHABLE: Final = "unable_to_connect_to_project"
BUSY: Final = "increase_connection_pool"
INVALID: Final = "payload_invalid"
UNKNOWN_CHANNEL: Final = "channel_not_found"
NO_PARTITION: Final = "missing_partition"
REFUSED: Final = "unable_to_store"

_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_OWN_FAULTS: Final = ("22", "23", "54")  # classes of SQLSTATE that are about one row: data, constraints, limits
_MESSAGE_BYTES: Final = 500  # what a message costs beside its payload

log = structlog.get_logger()


class _Append:
    """One message under way."""

    __slots__ = ("deadline", "done", "message", "size", "stored")

    def __init__(self, message: NewMessage, done: Callable[[Broadcast | str], None], deadline: float) -> None:
        self.message = message
        self.done = done
        self.deadline = deadline
        self.stored: Broadcast | None = None  # as the WAL has brought it
        self.size = len(message.broadcast.payload) + _MESSAGE_BYTES


NOTHING_SEEN: Final = Snapshot(0, 0, frozenset(), 0, 0, 0.0)


class Replayed(NamedTuple):
    """``messages``: oldest first. ``snapshot``: what it sees is among them or, where ``is_full``, older."""

    messages: list[Broadcast]
    snapshot: Snapshot
    is_full: bool


class MessageStore:
    """Stores, replays, hides and deletes. ``append``, ``arrived`` and ``delivered`` are synchronous.

    ``writer``: a database of its own with one or two connections, so that no other question delays a commit.
    """

    def __init__(self, database: Database, writer: Database, schema: str, bus: Bus) -> None:
        self.stored = 0
        self.failed = 0
        self._database = database
        self._writer = writer
        self._schema = schema
        self._bus = bus
        self._queue: deque[_Append] = deque()
        self._queue_bytes = 0
        self._under_way: dict[str, _Append] = {}
        self._wanted = trio.Event()
        self._delivered = RecentIds()
        self._fresh = FreshMessages()
        self._upkeep = MessageUpkeep(database, schema)
        self._told = ""

    def append(
        self,
        broadcast: Broadcast,
        done: Callable[[Broadcast | str], None],
        *,
        channel_id: str | None,
        sender: str | None,
        ttl_seconds: float | None = None,
    ) -> None:
        """Store a broadcast, whose ``event`` and ``payload`` are set.

        ``done`` is called once, after the commit and in the order of commits, with the broadcast as it is stored
        (``id``, ``seq``, ``sent_at``); else with an error code, within ``WAIT_SECONDS``. After a code the message may
        have been stored all the same, where the connection was lost in the commit: the WAL brings it then.
        """
        code = _fault(broadcast, sender)
        if not code and (len(self._queue) >= QUEUE_MAX or self._queue_bytes >= QUEUE_BYTES_MAX):
            code = BUSY
        if code:
            self.failed += 1
            done(code)
            return
        message = NewMessage(new_id(), broadcast, channel_id, sender, ttl_seconds)
        append = _Append(message, done, trio.current_time() + WAIT_SECONDS)
        self._queue.append(append)
        self._queue_bytes += append.size
        self._under_way[message.id] = append
        self._wanted.set()

    def arrived(self, broadcast: Broadcast, transaction: Transaction | None = None) -> bool:
        """The WAL has brought a stored message; whether it still has to be delivered here.

        One that waits for its commit's answer is delivered with that, or when it is given up. ``transaction``: its own,
        where it is delivered at once, maybe before queries see it: ``replay`` knows it all the same.
        """
        if transaction is not None:
            self._fresh.add(transaction, broadcast)
        append = self._under_way.get(broadcast.id)
        if append is not None:
            append.stored = broadcast
            return False
        return not self.delivered(broadcast.id)

    def delivered(self, id_: str) -> bool:
        """Whether a stored message was delivered here before; from now on it was."""
        return not self._delivered.add(id_)

    # -- reading and moderating; all raise DatabaseUnreachable or DatabaseRefused

    async def fetch(self, ids: Sequence[str]) -> list[Broadcast]:
        """Messages by their ids, in the order of sending; those that are hidden, expired or gone are left out."""
        known = [id_ for id_ in ids if _is_uuid(id_)]
        return await self._database.run(lambda c: message_rows.fetch(c, self._schema, known)) if known else []

    async def replay(self, room: RoomKey, since_ms: int, limit: int) -> Replayed:
        """The newest ``limit`` messages of a room from ``since_ms`` (milliseconds of the epoch) on.

        Whatever this node had delivered when it was called is among them, or older than they are; nothing that it
        delivered later is, unless the query saw it.
        """
        if not is_text(room.subtopic):
            return Replayed([], NOTHING_SEEN, is_full=False)
        bounded = min(max(since_ms, 0), _MS_MAX)
        count = min(max(limit, 1), REPLAY_MAX)

        def read(connection: PgConnection) -> tuple[Snapshot, list[Broadcast]]:
            with one_snapshot(connection):
                snapshot = load_snapshot(connection)
                return snapshot, message_rows.newest(connection, self._schema, room, bounded, count)

        delivered = self._fresh.count
        snapshot, found = await self._database.run(read)
        fresh = self._fresh.unseen(room, snapshot, {b.id for b in found}, delivered)
        return Replayed((found + fresh)[-count:], snapshot, is_full=len(found) + len(fresh) >= count)

    async def page(self, room: RoomKey, after: Position, limit: int) -> Page:
        """At most ``limit`` messages of a room after a position, oldest first, and where to go on."""
        if not is_text(room.subtopic):
            return Page([], has_more=False)
        count = min(max(limit, 1), REPLAY_MAX)
        return await self._database.run(lambda c: message_rows.page(c, self._schema, room, after, count))

    async def since(self, micros: int, limit: int) -> list[tuple[int, Broadcast]]:
        """What was stored from a time on (microseconds of the epoch), in whatever room; each with its 32-bit xid."""
        return await self._database.run(lambda c: message_rows.since(c, self._schema, micros, limit))

    async def hide(self, channel_id: str, message_id: str) -> bool:
        """Take a message of a channel out of its history; whether it was there."""
        return _is_uuid(message_id) and await self._database.run(
            lambda c: message_rows.hide(c, self._schema, channel_id, message_id)
        )

    async def delete(self, channel_id: str, message_id: str) -> bool:
        """Delete a message of a channel; whether it was there."""
        return _is_uuid(message_id) and await self._database.run(
            lambda c: message_rows.delete(c, self._schema, channel_id, message_id)
        )

    # -- writing

    async def run(self) -> None:
        """Store what comes, and keep the table in order, until cancelled. What waits then is answered as lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upkeep.run)
            nursery.start_soon(self._store_forever)

    async def _store_forever(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                batch = self._take()
                if not self._queue:
                    self._wanted = trio.Event()
                if batch:
                    await self._store(batch)
        finally:
            self._queue.clear()
            self._queue_bytes = 0
            for append in list(self._under_way.values()):
                self._fail(append, UNREACHABLE)

    def _take(self) -> list[_Append]:
        """The next batch: what waits, up to its bounds. Who has waited too long is answered."""
        batch: list[_Append] = []
        size = 0
        now = trio.current_time()
        while self._queue and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            append = self._queue.popleft()
            self._queue_bytes -= append.size
            if append.deadline <= now:
                self._fail(append, UNREACHABLE)
            else:
                batch.append(append)
                size += append.size
        return batch

    async def _store(self, batch: list[_Append]) -> None:
        """Store a batch, in one transaction if it can be; a row that is refused must not take others with it."""
        parts = [batch]
        while parts:
            part = parts.pop()
            messages = [append.message for append in part]
            stored: list[Broadcast] | str = UNREACHABLE
            with trio.move_on_at(part[0].deadline):
                try:
                    stored = await self._writer.run(partial(self._write, messages))
                except DatabaseRefused as error:
                    if error.sqlstate[:2] in _OWN_FAULTS and len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                        continue
                    stored = _code(error)
                    self._report(error)
                except DatabaseUnreachable as error:
                    self._report(error)
                    self._writer.forget_idle()
            if isinstance(stored, str):
                for append in part:
                    self._fail(append, stored)
            else:
                self._told = ""
                for append, broadcast in zip(part, stored, strict=True):
                    self._settle(append, broadcast)

    def _write(self, messages: Sequence[NewMessage], connection: PgConnection) -> list[Broadcast]:
        channels = {message.id: message.channel_id for message in messages}

        def notifications(stored: Sequence[Broadcast]) -> list[Notification]:
            told = trio.from_thread.run_sync(self._bus.notifications, [BroadcastItem(b) for b in stored])
            for broadcast in stored:
                channel_id = channels[broadcast.id]
                if channel_id is not None:
                    told += message_rows.channel_notification(self._schema, channel_id, broadcast.id)
            return told

        try:
            return message_rows.store(connection, self._schema, messages, notifications)
        except psycopg2.Error as error:
            raise translate(error) from error

    def _settle(self, append: _Append, broadcast: Broadcast) -> None:
        if self._under_way.pop(append.message.id, None) is not None:
            self.stored += 1
            self._delivered.add(broadcast.id)
            append.done(broadcast)

    def _fail(self, append: _Append, code: str) -> None:
        if append.stored is not None:
            self._settle(append, append.stored)
            return
        if self._under_way.pop(append.message.id, None) is not None:
            self.failed += 1
            append.done(code)

    def _report(self, error: WalstreamError) -> None:
        if error.code != self._told:  # once per cause, not once per batch
            self._told = error.code
            log.warning(MESSAGES_UNSTORED, code=error.code, error=error.message, repair=error.repair)


def new_id() -> str:
    """A uuid of version 7 (RFC 9562): rising with time, so that the newest rows lie together in the index."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MS_MAX: Final = 253_402_300_799_000


def _is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def _fault(broadcast: Broadcast, sender: str | None) -> str:
    """A code for what PostgreSQL cannot store, as far as a look tells; the rest it refuses itself."""
    if not (is_text(broadcast.event) and is_text(broadcast.room.subtopic) and is_text(sender or "")):
        return INVALID
    if not broadcast.binary:
        payload = broadcast.payload
        if b"\\u0000" in payload and _NUL.search(payload):
            return INVALID
        try:
            payload.decode()
        except UnicodeDecodeError:
            return INVALID
    return ""


def _code(error: DatabaseRefused) -> str:
    state = error.sqlstate
    if state == "23503":
        return UNKNOWN_CHANNEL
    if state == "23514" and "partition" in error.message:
        return NO_PARTITION
    if state[:2] in _OWN_FAULTS:
        return INVALID
    if state == "53300":
        return BUSY
    return REFUSED
