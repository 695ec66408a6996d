"""What the WAL says of rooms: changes of channels and members go to the directory, stored messages to their readers.

The pipeline hands rows over as they come and says when their transaction commits. Which commits are live, and why each
message is delivered once, is told in docs/discussion/stored-messages.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Final

import msgspec
import structlog
import trio

from walstream.errors import WalstreamError
from walstream.history.assemble import Spill, change_bytes
from walstream.history.visibility import is_live, settled
from walstream.lsn import Lsn
from walstream.model import Cell, Change, Operation, Relation, Row, Snapshot, Transaction
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.database.channel_rows import CHANNELS, MEMBERS
from walstream.shell.database.message_rows import TABLE as MESSAGES
from walstream.telemetry.log import MESSAGES_MISSED

SPILL_BYTES: Final = 16 * 1024 * 1024
"""Memory that messages may take which wait for their commit or their turn; more of them go to a file."""

SLICE: Final = 500
"""Messages that are delivered without giving way to anybody else."""

LATE_SECONDS: Final = 60.0
"""How old a commit may be that the first stream brings to a process which runs since before it."""

MISSED_MAX: Final = 10_000
"""Messages that are looked up after the WAL between two slots was lost."""

MISSED_MARGIN_SECONDS: Final = 60.0

_Pick = Callable[[Row], Sequence[Cell]]
"""The columns of ``_NAMES`` out of a row."""

_NAMES: Final = (
    "id", "seq", "topic", "private", "event", "payload", "binary_payload", "sent_at", "extension", "hidden",
    "expires_at",
)  # fmt: skip
_OPTIONAL: Final = ("hidden", "expires_at")
_text: Final = msgspec.json.Decoder(str).decode
_NULL: Final = b"null"

log = structlog.get_logger()


class WalFeed:
    """Synchronous but for ``run``, which delivers what is too much for one go.

    ``on_message`` gets every stored message that is live and was not delivered here yet, in commit order, with its
    transaction, or None for one that waited for its turn.
    ``on_commit`` is called for transactions up to which everything is delivered.
    ``on_channels_changed`` is called after a commit that changed channels or members. ``new_spill``: a sequence of
    changes outside memory.
    """

    tables: Final = frozenset({CHANNELS, MEMBERS, MESSAGES})

    def __init__(self, directory: Directory, store: MessageStore, new_spill: Callable[[], Spill]) -> None:
        self.on_message: Callable[[Broadcast, Transaction | None], None] = lambda broadcast, transaction: None
        self.on_channels_changed: Callable[[], None] = lambda: None
        self.on_commit: Callable[[Transaction], None] = lambda transaction: None
        self.delivered = 0
        self._directory = directory
        self._store = store
        self._new_spill = new_spill
        self._server_start = 0.0
        self._live_from: Snapshot | None = None
        self._is_settled = False
        self._has_streamed = False
        self._late: Snapshot | None = None  # of the first stream of a process that was there before it
        self._late_before = 0  # µs since the epoch
        self._newest_at = 0  # µs of the newest commit
        self._picks: dict[Relation, _Pick | None] = {}
        self._open = _Rows(new_spill)  # of the transaction under way
        self._tail = _Rows(new_spill)  # committed, behind what is being delivered
        self._backlog: deque[Sequence[Change]] = deque()
        self._is_delivering = False
        self._wanted = trio.Event()
        self._missed: tuple[int, Snapshot] | None = None  # µs from which on, and what the slot that is new will bring
        directory.on_loaded = self.live_from

    # -- the pipeline's side

    def live_from(self, snapshot: Snapshot) -> None:
        """Whatever the snapshot sees is history. The first one counts: the stream may be read again from before it."""
        if self._live_from is None:
            self._live_from = snapshot
            self._newest_at = self._newest_at or time.time_ns() // 1000

    def opened(self, snapshot: Snapshot, server_start: float, *, missed: bool) -> None:
        """A stream begins. ``missed``: WAL between the last one and this one is lost."""
        self._server_start = server_start
        self._picks.clear()
        self._open.clear()
        if missed and self._live_from is not None:
            self._look_up(self._newest_at - int(MISSED_MARGIN_SECONDS * 1e6), snapshot)
            self._directory.changed()
        if not self._has_streamed and self._live_from is not None:
            # A node that has stood by for another's slot reads what its clients have heard by way of the bus.
            self._late = snapshot
            self._late_before = time.time_ns() // 1000 - int(LATE_SECONDS * 1e6)
        self._has_streamed = True
        self.live_from(snapshot)

    def begin(self) -> None:
        """A transaction begins; rows of one that was cut off are forgotten."""
        if len(self._open):
            self._open.clear()

    def row(self, change: Change, size: int) -> bool:
        """Take a row of one of our tables. Whether it is done with; else it belongs to ``Transaction.control``."""
        if change.relation.name != MESSAGES:
            return False
        if change.operation is Operation.INSERT:
            self._open.append(change, size)
        return True

    def committed(self, transaction: Transaction) -> None:
        """The rows since ``begin`` were committed, and the control changes of the transaction."""
        self._newest_at = transaction.commit_at
        if transaction.control and any(change.relation.name in (CHANNELS, MEMBERS) for change in transaction.control):
            self._directory.applied(transaction, self._server_start)
            if self._is_live(transaction):
                self.on_channels_changed()
        if len(self._open):
            rows = self._open
            self._open = _Rows(self._new_spill)
            if self._is_live(transaction):
                if self._is_busy or len(rows) > SLICE:
                    self._queue(rows)
                else:
                    self._deliver(rows.memory, transaction)
        if not self._is_busy:
            self.on_commit(transaction)

    def _is_live(self, transaction: Transaction) -> bool:
        if self._late is not None:
            if settled(transaction, self._late):
                self._late = None
            elif transaction.commit_at < self._late_before and not is_live(transaction, self._late, self._server_start):
                return False
        if self._is_settled or self._live_from is None:
            return True
        if is_live(transaction, self._live_from, self._server_start):
            self._is_settled = settled(transaction, self._live_from)
            return True
        return False

    # -- delivering

    @property
    def _is_busy(self) -> bool:
        return self._is_delivering or bool(self._backlog) or len(self._tail) > 0

    def _queue(self, rows: _Rows) -> None:
        if rows.is_spilled:
            self._end_tail()
            self._backlog.append(rows.take())
        else:
            self._tail.extend(rows)
            if self._tail.is_spilled:
                self._end_tail()
        self._wanted.set()

    def _end_tail(self) -> None:
        if len(self._tail):
            self._backlog.append(self._tail.take())
            self._tail = _Rows(self._new_spill)

    async def run(self) -> None:
        """Deliver large transactions, and what was committed after them, until cancelled. Raises OSError."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._missed is not None:
                missed, self._missed = self._missed, None
                await self._catch_up(*missed)
            while self._is_busy:
                if not self._backlog:
                    self._end_tail()
                await self._deliver_slowly(self._backlog.popleft())

    async def _deliver_slowly(self, rows: Sequence[Change]) -> None:
        self._is_delivering = True
        try:
            part: list[Change] = []
            for change in rows:
                part.append(change)
                if len(part) >= SLICE:
                    self._deliver(part)
                    part = []
                    await trio.lowlevel.checkpoint()
            self._deliver(part)
            await trio.lowlevel.checkpoint()
        finally:
            self._is_delivering = False

    def _deliver(self, rows: Iterable[Change], transaction: Transaction | None = None) -> None:
        for change in rows:
            broadcast = self._broadcast(change)
            if broadcast is not None and self._store.arrived(broadcast, transaction):
                self.delivered += 1
                self.on_message(broadcast, transaction)

    def _look_up(self, micros: int, before: Snapshot) -> None:
        self._missed = (micros if self._missed is None else min(micros, self._missed[0])), before
        self._wanted.set()

    async def _catch_up(self, micros: int, before: Snapshot) -> None:
        """Look up what was stored while no slot held the WAL. Tried again until the database answers.

        ``before``: of the new slot's first stream. What it does not see is in the WAL, and comes by it in its order.
        """
        try:
            found = await self._store.since(micros, MISSED_MAX)
        except WalstreamError as error:
            log.warning(MESSAGES_MISSED, code=error.code, error=error.message)
            await trio.sleep(1.0)
            self._look_up(micros, before if self._missed is None else self._missed[1])
            return
        for xid, broadcast in found:
            is_due = self._is_after_start(xid) and not is_live(Transaction(xid, Lsn(0), 0, ()), before)
            if is_due and self._store.arrived(broadcast):
                self.delivered += 1
                self.on_message(broadcast, None)
        if len(found) >= MISSED_MAX:
            log.warning(MESSAGES_MISSED, messages=len(found))

    def _is_after_start(self, xid: int) -> bool:
        return self._live_from is None or is_live(Transaction(xid, Lsn(0), 0, ()), self._live_from)

    # -- a row as a message

    def _broadcast(self, change: Change) -> Broadcast | None:
        """The message of a row; None for what is no broadcast, or not to be shown."""
        relation, new = change.relation, change.new
        if relation not in self._picks:
            if len(self._picks) > 1000:
                self._picks.clear()
            self._picks[relation] = _pick(relation)
        pick = self._picks[relation]
        if pick is None or new is None:
            return None
        id_, seq, topic, private, event, payload, binary, sent_at, extension, hidden, expires = pick(new)
        if not (id_ and seq and topic and event and sent_at) or event == _NULL:
            return None
        if (
            extension != b'"broadcast"'
            or hidden == b"true"
            or (expires is not None and expires != _NULL and _is_over(expires))
        ):
            return None
        is_binary = binary is not None and binary != _NULL
        return Broadcast(
            room=RoomKey(_text(topic), private == b"true"),
            event=_text(event),
            payload=_bytes(binary) if is_binary and binary is not None else payload or _NULL,
            binary=is_binary,
            id=_text(id_),
            seq=int(seq),
            sent_at=_text(sent_at),
        )


class _Rows:
    """Changes in memory, or all of them in a spill once they are too large."""

    __slots__ = ("_new_spill", "_spill", "memory", "size")

    def __init__(self, new_spill: Callable[[], Spill]) -> None:
        self._new_spill = new_spill
        self.clear()

    def clear(self) -> None:
        """Forget them."""
        self.memory: list[Change] = []
        self.size = 0
        self._spill: tuple[Spill, int] | None = None

    def __len__(self) -> int:
        return len(self.memory) + (self._spill[1] if self._spill is not None else 0)

    @property
    def is_spilled(self) -> bool:
        """Whether they lie outside memory."""
        return self._spill is not None

    def append(self, change: Change, size: int) -> None:
        """Add one. Raises OSError."""
        self.memory.append(change)
        self.size += change_bytes(change, size)
        if self.size > SPILL_BYTES or (self._spill is not None and len(self.memory) >= SLICE):
            self._to_spill()

    def extend(self, rows: _Rows) -> None:
        """Add those of a transaction that are in memory. Raises OSError."""
        self.memory += rows.memory
        self.size += rows.size
        if self.size > SPILL_BYTES:
            self._to_spill()

    def _to_spill(self) -> None:
        spill, count = self._spill or (self._new_spill(), 0)
        for change in self.memory:
            spill.append(change)
        self._spill = (spill, count + len(self.memory))
        self.memory = []
        self.size = 0

    def take(self) -> Sequence[Change]:
        """All of them; nothing is added afterwards. Raises OSError."""
        if self._spill is None:
            return self.memory
        self._to_spill()
        return self._spill[0].changes()


def _pick(relation: Relation) -> _Pick | None:
    """None for a table that lacks what messages have to have."""
    positions = relation.positions
    if any(name not in positions for name in _NAMES if name not in _OPTIONAL):
        return None
    if all(name in positions for name in _NAMES):
        return itemgetter(*[positions[name] for name in _NAMES])
    places = [positions.get(name) for name in _NAMES]  # a schema that `walstream init` has not seen for long
    return lambda row: [row[at] if at is not None else _NULL for at in places]


def _bytes(cell: bytes) -> bytes:
    """Bytes out of hex, with or without PostgreSQL's own prefix."""
    text = _text(cell).removeprefix("\\x")
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _is_over(cell: bytes) -> bool:
    try:
        return datetime.fromisoformat(_text(cell)) <= datetime.now(UTC)
    except (ValueError, msgspec.DecodeError):
        return False  # infinity, or a year that Python does not know
