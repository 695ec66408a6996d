"""The mirror to NOTIFY: captured changes of subscriptions with ``notify`` for whoever LISTENs in the database itself.

On the channel ``realtime:table:<schema>.<table>`` goes the table feed's message, after the writer's commit and outside
of its transaction. One daemon of a database does it, whoever has the lock. Who hears it: docs/discussion/bus.md.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from walstream.bus.names import notify_channel
from walstream.bus.seal import TEXT_BYTES_MAX
from walstream.capture.plan import Plan
from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.model import Change, Relation, Transaction
from walstream.protocol.changes import Moment, renderer
from walstream.protocol.shapes import TransactionText
from walstream.shell.channels.notify_mouth import NotifyMouth, Saying
from walstream.shell.database.postgres import PgConnection
from walstream.shell.database.rows import scalar
from walstream.telemetry.log import MIRROR_DROPPED, MIRROR_LOST, MIRROR_STARTED
from walstream.telemetry.metrics import Metrics

CHANNEL_PREFIX: Final = "realtime:table:"

WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
WAITING_MAX: Final = 200_000
"""Transactions that wait for the database, beside their bytes."""

BATCH_BYTES: Final = 1024 * 1024
TURN_SECONDS: Final = 0.01
"""For reading on in one transaction at one go."""

_LOCK: Final = "select pg_catalog.pg_try_advisory_lock(%s)"

log = structlog.get_logger()


class _Waiting(NamedTuple):
    transaction: Transaction
    channels: dict[Relation, str]  # of the plan that captured it; "" where it is not mirrored
    plan: Plan


class NotifyMirror:
    """Hands captured changes to NOTIFY while some subscription asks for it; else it has no connection.

    ``open_connection`` gets the application's name and blocks. ``cluster``: the cluster's name in positions, now.
    """

    def __init__(
        self,
        open_connection: Callable[[str], PgConnection],
        schema: str,
        node: str,
        cluster: Callable[[], str],
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self.is_needed = False
        self.sent = self.dropped = 0
        self._schema = schema
        self._cluster = cluster
        self._plan = Plan(own_schema=schema)
        self._channels: dict[Relation, str] = {}
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._current: Iterator[Saying | None] | None = None
        self._unsaid: list[Saying] = []
        self._is_elsewhere = False
        self._dropping = False
        self._trouble = ""
        self._needed = trio.Event()
        self._speaking: trio.CancelScope | None = None
        self._mouth = NotifyMouth(partial(open_connection, "walstream (mirror)"), self, schema=schema, node=node)
        if metrics is not None:
            metrics.watch("mirror_sent", lambda: self.sent)
            metrics.watch("mirror_dropped", lambda: self.dropped)

    # -- what the pipeline tells

    def use(self, plan: Plan) -> None:
        """Obey this plan for what is committed from now on."""
        self._plan = plan
        self._channels = {}
        self.is_needed = any(row.notify and not row.problem for row in plan.rows)
        if self.is_needed:
            self._needed.set()
        elif self._speaking is not None:
            self._speaking.cancel()

    def committed(self, transaction: Transaction) -> None:
        """Take a transaction that is new, in commit order. Of too many the newest are dropped."""
        if self._is_elsewhere:
            return
        waiting = _Waiting(transaction, self._channels, self._plan)
        # One that went to a file is not read twice; what of it is meant will be seen.
        if isinstance(transaction.changes, list | tuple) and not any(
            _channel(waiting, change.relation) for change in transaction.changes
        ):
            return
        # One alone may be as large as it likes: the history bounds it.
        is_full = len(self._waiting) >= WAITING_MAX or self._waiting_bytes + transaction.size > WAITING_BYTES_MAX
        if is_full and self._waiting:
            self._drop(len(transaction.changes))
            return
        self._waiting.append(waiting)
        self._waiting_bytes += transaction.size
        self._mouth.wake()

    async def run(self) -> None:
        """Mirror until cancelled."""
        while True:
            await self._needed.wait()
            self._needed = trio.Event()
            if self.is_needed:
                with trio.CancelScope() as self._speaking:
                    await self._mouth.run()
                self._speaking = None
                self._forget()

    # -- as a Speaker

    def settle(self, connection: PgConnection) -> bool:
        """Whether no other daemon mirrors already."""
        with connection.cursor() as cursor:
            cursor.execute(_LOCK, (lock_key(self._schema),))
            is_ours = bool(scalar(cursor))
        self._is_elsewhere = not is_ours
        return is_ours

    def reached(self) -> None:
        """Mirroring begins, or goes on."""
        self._trouble = ""
        log.info(MIRROR_STARTED)
        self._mouth.wake()

    def lost(self, error: WalstreamError, seconds: float) -> None:
        """Say once per cause that there is no connection."""
        trouble = (error.reason if isinstance(error, DatabaseRefused) else "") or error.code
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(MIRROR_LOST, error=str(error), code=trouble, retry_seconds=round(seconds, 1))

    def take(self, *, last: bool) -> list[Saying]:
        """The next notifications, of one transaction or several."""
        if self._unsaid:
            sayings, self._unsaid = self._unsaid, []
            return sayings
        sayings, size = [], 0
        until = trio.current_time() + TURN_SECONDS
        while size < BATCH_BYTES and trio.current_time() < until:
            if self._current is None:
                if not self._waiting:
                    self._dropping = False
                    break
                waiting = self._waiting.popleft()
                self._waiting_bytes -= waiting.transaction.size
                self._current = self._sayings(waiting)
            try:
                saying = next(self._current)
            except StopIteration:
                self._current = None
            except OSError as error:
                self._current = None
                self._drop(1, error)
            else:
                if saying is not None:
                    sayings.append(saying)
                    size += len(saying.payload)
        if self._current is not None or self._waiting:
            self._mouth.wake()
        self.sent += len(sayings)
        return sayings

    def unsaid(self, sayings: list[Saying], error: WalstreamError) -> None:
        """Say them again where nobody knows whether they were said: a position tells two of a kind."""
        self.sent -= len(sayings)
        if isinstance(error, DatabaseUnreachable):
            self.sent += len(sayings)
            self._unsaid = sayings
        else:
            self._drop(len(sayings), error)

    # -- the notifications

    def _sayings(self, waiting: _Waiting) -> Iterator[Saying | None]:
        """A notification for each change that is mirrored, None for each other one."""
        transaction = waiting.transaction
        text = TransactionText.of(transaction, self._cluster())
        final = len(transaction.changes) - 1
        for index, change in enumerate(transaction.changes):
            channel = _channel(waiting, change.relation)
            yield Saying(channel, message(change, text, last=index == final)) if channel else None

    def _drop(self, count: int, error: Exception | None = None) -> None:
        self.dropped += count
        if not self._dropping:
            self._dropping = True
            log.warning(MIRROR_DROPPED, error=str(error) if error is not None else "too much waits for the database")

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._current = None
        self._unsaid = []


def lock_key(schema: str) -> int:
    """The advisory lock of whoever mirrors this schema's subscriptions."""
    return int.from_bytes(hashlib.sha256(b"walstream mirror " + schema.encode()).digest()[:8], signed=True)


def message(change: Change, text: TransactionText, *, last: bool) -> str:
    """The table feed's message of a change, cut where NOTIFY could not carry it.

    Cut, it has ``"truncated": true`` and of the rows the values of at most 64 bytes; where even these are too many,
    no rows at all.
    """
    whole = _feed(change, text.moment, text.position(change), last=last, size_max=text.max_record_bytes)
    if len(whole) <= TEXT_BYTES_MAX:
        return whole.decode()
    small = _truncated(_feed(change, text.moment, text.position(change), last=last, size_max=0))
    if len(small) <= TEXT_BYTES_MAX:
        return small.decode()
    bare = Change(change.relation, change.operation, None, None, change.lsn, change.ordinal)
    return _truncated(
        _feed(bare, text.moment, text.position(change), last=last, size_max=text.max_record_bytes)
    ).decode()


def _feed(change: Change, moment: Moment, position: bytes, *, last: bool, size_max: int) -> bytes:
    return renderer(change.relation, None).feed(change, moment, position, last, size_max)


def _truncated(feed: bytes) -> bytes:
    return feed[:-1] + b',"truncated":true}'


def _channel(waiting: _Waiting, relation: Relation) -> str:
    channel = waiting.channels.get(relation)
    if channel is None:
        row = waiting.plan.row_for(relation.schema, relation.name)
        mirrored = row is not None and row.notify
        channel = notify_channel(f"{CHANNEL_PREFIX}{relation.schema}.{relation.name}") if mirrored else ""
        waiting.channels[relation] = channel
    return channel
