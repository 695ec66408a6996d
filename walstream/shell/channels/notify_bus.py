"""The bus of the nodes of one database: sealed envelopes by NOTIFY on the channel ``<schema>:bus``.

What travels on it, by its first letter:

    s  a sealed envelope in base64
    r  the uuid of a row of ``bus_payloads`` that is an envelope: where the cluster has no secret
    m  the uuid of a stored message that nobody has told other nodes of: from the command line, which has no secret

Items that are too large for a sealed envelope stand in ``bus_payloads``, sealed as well, under a uuid that the envelope
names. Only walstream's own roles may write there. Why it is built so: docs/discussion/bus.md.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog
import trio
from psycopg2 import sql

from walstream.bus.envelope import Packer, Parcel, encode_item
from walstream.bus.inbox import Inbox
from walstream.bus.items import BroadcastItem, Bye, Hello, Item, StoredItem
from walstream.bus.names import notify_channel
from walstream.bus.seal import NONCE_BYTES, PLAIN_BYTES_MAX, Seal, to_text
from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.shell.channels.bus import BusListener
from walstream.shell.channels.line import Line
from walstream.shell.channels.notify_ear import Heard, NotifyEar, Place
from walstream.shell.channels.notify_hearing import MESSAGE, SEALED, STORED, Hearing
from walstream.shell.channels.notify_mouth import NotifyMouth, Saying
from walstream.shell.database.postgres import PgConnection
from walstream.shell.supervise import boot_clock
from walstream.telemetry.log import BUS_DROPPED, BUS_LOST, BUS_REACHED, PEER_FOUND, PEER_LOST
from walstream.telemetry.metrics import Metrics

HEARTBEAT_SECONDS: Final = 5.0
NODE_TIMEOUT_SECONDS: Final = 15.0
TICK_SECONDS_MAX: Final = 1.0
JITTER: Final = 0.1

STALE_SECONDS: Final = 2.0
"""What waits for the database longer is dropped: others are told that something is missing."""

QUEUE_BYTES: Final = 16 * 1024 * 1024
BATCH_BYTES: Final = 256 * 1024
UNBOUNDED: Final = 1 << 40

SWEEP_SECONDS: Final = 30.0
PAYLOAD_SECONDS: Final = 60.0
"""Rows of ``bus_payloads`` live so long: whoever can hear has heard by then."""

_SWEEP: Final = "delete from {payloads} where inserted_at < now() - make_interval(secs => %s)"

log = structlog.get_logger()


class NotifyBus:
    """The ``Bus`` of one node over PostgreSQL.

    ``open_connection`` gets the application's name and blocks. ``node``: a name for people, made unique for this start.
    ``secret``: of the cluster; with "" what nodes say goes by rows of a table.
    """

    def __init__(
        self,
        open_connection: Callable[[str], PgConnection],
        schema: str,
        node: str,
        secret: str,
        *,
        metrics: Metrics | None = None,
        node_timeout_seconds: float = NODE_TIMEOUT_SECONDS,
    ) -> None:
        self.node = f"{node[:200]}#{secrets.token_hex(8)}"
        self.items_out = self.dropped = 0
        self._schema = schema
        self._secret = secret
        self._ahead = time.time() - boot_clock()  # the database's clock before one that nobody sets
        self._heartbeat_seconds = min(HEARTBEAT_SECONDS, node_timeout_seconds / 3)
        self._tick_seconds = min(TICK_SECONDS_MAX, node_timeout_seconds / 5)
        self._channel = notify_channel(f"{schema}:bus")
        self._packer = Packer(
            self.node, room=PLAIN_BYTES_MAX if secret else UNBOUNDED, bytes_max=QUEUE_BYTES, new_id=_new_id
        )
        self._unsaid: list[Saying] = []
        self._placed = trio.Event()
        self._seal: Seal | None = None
        self._away_since: float | None = -STALE_SECONDS
        self._dropping = False
        self._said_bye = False
        self._trouble: dict[str, str] = {}
        self._also: dict[str, Callable[[str], None]] = {}
        self._again: list[Callable[[], None]] = []
        self._sweep_statement = sql.SQL(_SWEEP).format(payloads=sql.Identifier(schema, "bus_payloads"))
        self._inbox = Inbox(self.node, timeout=node_timeout_seconds)
        self._hearing = Hearing(
            self._inbox, schema, now=self._now, found=self._peer_found, lost=self._peer_lost, metrics=metrics
        )
        self._ear = NotifyEar(
            partial(open_connection, "walstream (bus, listening)"),
            received=self._received,
            reached=self._hears,
            lost=self._inbox.away,
            failed=partial(self._failed, "listening"),
            silence_seconds=2 * self._heartbeat_seconds,
        )
        self._ear.channels.append(self._channel)
        self._mouth = NotifyMouth(partial(open_connection, "walstream (bus)"), self, schema=schema, node=self.node)
        if metrics is not None:
            self._watch_numbers(metrics)

    def _watch_numbers(self, metrics: Metrics) -> None:
        metrics.watch("bus_peers", lambda: len(self._inbox.peers))
        metrics.watch("bus_items_in", lambda: self._hearing.items)
        metrics.watch("bus_items_out", lambda: self.items_out)
        metrics.watch("bus_items_dropped", lambda: self.dropped)
        metrics.watch("bus_gaps", lambda: self._hearing.gaps)
        metrics.watch("bus_transactions", lambda: self.transactions)

    # -- what the rest of the daemon calls

    @property
    def transactions(self) -> int:
        """Transactions that have carried items so far."""
        return self._mouth.transactions

    @property
    def peers(self) -> frozenset[str]:
        """Nodes that have been heard within the node timeout."""
        return self._inbox.peers

    def listen(self, listener: BusListener) -> None:
        """Tell ``listener`` what comes; to be called once, before ``run``."""
        self._hearing.listener = listener

    def also(self, channel: str, receive: Callable[[str], None], again: Callable[[], None]) -> None:
        """Listen to another channel on the same connection; to be called before ``run``.

        ``receive`` gets each payload, ``again`` is called whenever listening has begun: what was said before is lost.
        """
        name = notify_channel(channel)
        self._ear.channels.append(name)
        self._also[name] = receive
        self._again.append(again)

    def publish(self, item: Item) -> None:
        """Hand an item over. It is dropped while nobody listens, the database is away, or too much waits already."""
        if not self._inbox.peers:
            self._packer.lost()  # a node that was taken for lost sees by the hole that it missed something
            return
        self._put(item)

    def notifications(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """The same as (channel, payload) pairs for NOTIFY inside a transaction of the caller's own; [] while alone.

        Without a cluster's secret only stored messages can be told so, by their ids.
        """
        if not self._inbox.peers:
            return []
        if self._seal is None:
            ids = [stored for item in items for stored in _stored_ids(item)]
            return [(self._channel, MESSAGE + stored) for stored in ids]
        encoded = [one for item in items if (one := encode_item(item)) is not None]
        parcels = self._packer.alongside(encoded, self._now_ms())
        self.items_out += sum(parcel.items for parcel in parcels)
        return [(self._channel, self._saying(parcel).payload) for parcel in parcels]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled; says goodbye then, within a second. Starts without the database as well."""
        assert self._hearing.listener is not None, "listen() comes first"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ear.run)
            nursery.start_soon(self._speak)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._sweep)
            task_status.started()

    # -- speaking

    async def _speak(self) -> None:
        await self._placed.wait()  # the time and the seal come from where we listen
        await self._mouth.run()

    def _say_hello(self) -> None:
        if self._away_since is None:  # else it is said when there is a connection
            self._put(Hello())

    def _put(self, item: Item) -> None:
        encoded = encode_item(item)
        if encoded is None or self._is_stale():
            self._packer.lost()
            self._drop(1)
        elif not self._packer.put(encoded):
            self._drop(1)
        else:
            self._mouth.wake()

    def _is_stale(self) -> bool:
        return self._away_since is not None and trio.current_time() - self._away_since > STALE_SECONDS

    def _drop(self, count: int) -> None:
        self.dropped += count
        if count and not self._dropping:
            self._dropping = True
            log.warning(BUS_DROPPED, node=self.node)

    def settle(self, connection: PgConnection) -> bool:
        """As a ``Speaker``: nothing has to be waited for."""
        return True

    def reached(self) -> None:
        """As a ``Speaker``: say what has waited since the connection was lost, and hello."""
        self._drop_stale()
        self._away_since = None
        self._dropping = False
        self._recovered("speaking")
        self._say_hello()
        self._mouth.wake()

    def lost(self, error: WalstreamError, seconds: float) -> None:
        """As a ``Speaker``: keep things for a moment."""
        if self._away_since is None:
            self._away_since = trio.current_time()
        self._failed("speaking", error, seconds)

    def take(self, *, last: bool) -> list[Saying]:
        """As a ``Speaker``: what is left of a transaction that failed, or the next items; goodbye as the last."""
        if self._unsaid:
            unsaid, self._unsaid = self._unsaid, []
            return unsaid
        parcels = self._packer.take(self._now_ms(), bytes_max=BATCH_BYTES)
        if last and not parcels and not self._said_bye:
            self._said_bye = True
            encoded = encode_item(Bye())
            assert encoded is not None
            self._packer.put(encoded)
            parcels = self._packer.take(self._now_ms(), bytes_max=BATCH_BYTES)
        self.items_out += sum(parcel.items for parcel in parcels)
        return [self._saying(parcel) for parcel in parcels]

    def unsaid(self, sayings: list[Saying], error: WalstreamError) -> None:
        """As a ``Speaker``: say them again, which others do not take twice; not what the server does not take."""
        if isinstance(error, DatabaseUnreachable):
            self._unsaid = sayings
        else:
            self._packer.lost()
            self._drop(len(sayings))
            self._failed("speaking", error, 0.0)

    def _drop_stale(self) -> None:
        if not self._is_stale():
            return
        if self._unsaid:
            self._packer.lost()
            self._drop(len(self._unsaid))
            self._unsaid = []
        self._drop(self._packer.drop())

    def _saying(self, parcel: Parcel) -> Saying:
        if self._seal is None:
            reference = _new_id()
            return Saying(self._channel, STORED + reference, reference, parcel.envelope)
        nonce = secrets.token_bytes(NONCE_BYTES)
        payload = SEALED + to_text(self._seal.close(parcel.envelope, nonce))
        if not parcel.stored:
            return Saying(self._channel, payload)
        content = self._seal.close(parcel.content, secrets.token_bytes(NONCE_BYTES), parcel.stored)
        return Saying(self._channel, payload, parcel.stored, content)

    # -- listening

    def _hears(self, place: Place) -> None:
        self._ahead = place.clock - boot_clock()
        if self._secret:
            self._seal = Seal(self._secret, database=place.database, schema=self._schema)
            self._hearing.seal = self._seal
        self._inbox.back(self._now_ms(), trio.current_time())
        self._placed.set()
        self._recovered("listening")
        self._hearing.gap()
        self._say_hello()
        for again in self._again:
            again()

    async def _received(self, line: Line, news: Sequence[Heard]) -> None:
        ours = []
        for heard in news:
            if heard.channel == self._channel:
                if heard.pid != self._mouth.pid:  # our own words need no opening
                    ours.append(heard.payload)
            else:
                self._also[heard.channel](heard.payload)
        if ours:
            await self._hearing.hear(line, ours)

    def _peer_found(self, node: str) -> None:
        log.info(PEER_FOUND, node=self.node, peer=node)
        self._say_hello()  # so that it knows of us at once

    def _peer_lost(self, node: str) -> None:
        log.info(PEER_LOST, node=self.node, peer=node)

    # -- time

    def _now(self) -> float:
        return boot_clock() + self._ahead

    def _now_ms(self) -> int:
        return round(self._now() * 1000)

    async def _tick(self) -> None:
        """Say hello at every heartbeat, and look for nodes that have become silent."""
        hello_at = trio.current_time() + self._heartbeat_seconds
        listener = self._hearing.listener
        assert listener is not None
        while True:
            due = trio.current_time() + self._tick_seconds
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > self._tick_seconds:
                self._inbox.excuse(now)  # it was us who stood still
            for node in self._inbox.expired(self._now_ms(), now):
                self._peer_lost(node)
                listener.peer_lost(node)
            self._drop_stale()
            self._dropping = self._dropping and (self._away_since is not None or len(self._packer) > 0)
            if now >= hello_at:
                self._say_hello()
                hello_at = now + self._heartbeat_seconds * (1 - JITTER * random.random())  # noqa: S311 - jitter

    async def _sweep(self) -> None:
        """Take old rows away, whoever wrote them: their nodes may have gone."""
        while True:
            await trio.sleep(SWEEP_SECONDS * (1 - JITTER * random.random()))  # noqa: S311 - jitter, no secret
            try:
                await self._mouth.do(self._sweep_payloads)
            except WalstreamError as error:
                log.debug(BUS_LOST, way="sweeping", error=str(error), node=self.node)

    def _sweep_payloads(self, connection: PgConnection) -> None:
        with connection.cursor() as cursor:
            cursor.execute(self._sweep_statement, (PAYLOAD_SECONDS,))

    # -- telling people

    def _failed(self, way: str, error: WalstreamError, seconds: float) -> None:
        """Say once per cause that a connection is not there."""
        trouble = (error.reason if isinstance(error, DatabaseRefused) else "") or error.code
        if self._trouble.get(way) != trouble:
            self._trouble[way] = trouble
            log.warning(
                BUS_LOST, way=way, error=str(error), code=trouble, retry_seconds=round(seconds, 1), node=self.node
            )

    def _recovered(self, way: str) -> None:
        if self._trouble.pop(way, None) is not None:
            log.info(BUS_REACHED, way=way, node=self.node)


def _stored_ids(item: Item) -> Sequence[str]:
    if type(item) is StoredItem:
        return item.ids
    if type(item) is BroadcastItem and item.broadcast.seq is not None:
        return (item.broadcast.id,)
    return ()


def _new_id() -> str:
    return str(uuid.uuid4())
