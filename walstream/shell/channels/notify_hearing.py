"""What a notification on the nodes' channel says: unsealed, looked up where it only refers, and told in order.

Anybody in the database may notify: whatever is no message of a node costs little, is counted, and goes no further.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog
import trio
from psycopg2 import sql

from walstream.bus.envelope import Envelope, Pieces, decode_content, decode_envelope
from walstream.bus.inbox import Inbox, Reception
from walstream.bus.items import Bye, Hello, Item, StoredItem
from walstream.bus.seal import Seal, from_text
from walstream.channel.rate import Bucket
from walstream.errors import BusError, DatabaseRefused
from walstream.shell.channels.bus import BusListener
from walstream.shell.channels.line import Line
from walstream.shell.database.postgres import PgConnection
from walstream.telemetry.log import BUS_REFUSED
from walstream.telemetry.metrics import Metrics

SEALED: Final = "s"
STORED: Final = "r"
MESSAGE: Final = "m"

LOOKUP_SECONDS: Final = 5.0
MESSAGES_PER_SECOND: Final = 200
MESSAGES_BURST: Final = 1000
"""References to stored messages that nobody has sealed: each costs a look into a table, and anybody may notify. Those
beyond come by the WAL a little later."""
ENVELOPES_PER_SECOND: Final = 5000
"""The same of stored envelopes, of which some nodes may send 400 a second each."""
KNOWN_MAX: Final = 4096
COMPLAINT_SECONDS: Final = 60.0
BREATH: Final = 8
"""Envelopes read before other tasks have a turn."""

_REPAIRS: Final = {
    "forged": "all nodes of a database need the same WALSTREAM_CLUSTER_SECRET, or the same WALSTREAM_JWT_SECRET",
}
_FETCH: Final = "select id::text, payload from {payloads} where id = any(%s::uuid[])"

log = structlog.get_logger()


class _Told(NamedTuple):
    envelope: Envelope
    reception: Reception


class Hearing:
    """Reads notifications for one node. ``now``: seconds since the Unix epoch by the database's clock.

    ``seal`` is set before the first one comes: None where the cluster has no secret. ``found`` and ``lost`` are told
    of other nodes before the listener is.
    """

    def __init__(
        self,
        inbox: Inbox,
        schema: str,
        *,
        now: Callable[[], float],
        found: Callable[[str], None],
        lost: Callable[[str], None],
        metrics: Metrics | None,
    ) -> None:
        self.seal: Seal | None = None
        self.listener: BusListener | None = None
        self.items = 0
        self.gaps = 0
        self._inbox = inbox
        self._now = now
        self._found = found
        self._lost = lost
        self._metrics = metrics
        self._fetch_statement = sql.SQL(_FETCH).format(payloads=sql.Identifier(schema, "bus_payloads"))
        self._known: OrderedDict[str, None] = OrderedDict()  # references that have been looked up, newest last
        self._buckets = {
            MESSAGE: Bucket(MESSAGES_PER_SECOND, MESSAGES_BURST, 0.0),
            STORED: Bucket(ENVELOPES_PER_SECOND, ENVELOPES_PER_SECOND, 0.0),
        }
        self._pieces = Pieces()
        self._complained: dict[str, float] = {}

    async def hear(self, line: Line, payloads: Sequence[str]) -> None:
        """Tell the listener what the payloads say. Raises what ``Line.do`` raises, for what they refer to."""
        listener = self.listener
        assert listener is not None, "listen() comes first"
        if messages := self._fresh(MESSAGE, payloads):
            listener.item("", StoredItem(tuple(messages)))
        rows = await self._rows(line, payloads)
        told = [one for payload in payloads if (one := self._read(payload, rows)) is not None]
        wanted = [one.envelope.stored for one in told if one.envelope.stored]
        contents = await self._fetch(line, wanted) if wanted else {}
        for count, one in enumerate(told, start=1):
            self._tell(listener, one, contents)
            if count % BREATH == 0:
                await trio.lowlevel.checkpoint()

    def gap(self) -> None:
        """Something may have been missed."""
        self.gaps += 1
        assert self.listener is not None
        self.listener.gap()

    async def _rows(self, line: Line, payloads: Sequence[str]) -> dict[str, bytes]:
        """Envelopes that stand in the table, of a cluster without a secret."""
        if self.seal is not None:
            return {}
        references = self._fresh(STORED, payloads)
        return await self._fetch(line, references) if references else {}

    def _fresh(self, kind: str, payloads: Sequence[str]) -> list[str]:
        """References of a kind that are uuids, are met for the first time, and are not too many."""
        fresh = []
        bucket = self._buckets[kind]
        for payload in payloads:
            if payload[:1] != kind:
                continue
            reference = payload[1:]
            if not _is_uuid(reference):
                self._refuse(BusError("no uuid", "malformed"))
            elif reference in self._known:
                self._refuse(BusError("referred to before", "replayed"))
            elif bucket.take(trio.current_time()) is None:
                self._refuse(BusError("too many references", "crowded"))
            else:
                self._known[reference] = None
                fresh.append(reference)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return fresh

    async def _fetch(self, line: Line, references: list[str]) -> dict[str, bytes]:
        def work(connection: PgConnection) -> dict[str, bytes]:
            with connection.cursor() as cursor:
                cursor.execute(self._fetch_statement, (references,))
                return {reference: bytes(payload) for reference, payload in cursor.fetchall()}

        try:
            return await line.do(work, seconds=LOOKUP_SECONDS)
        except DatabaseRefused as error:
            self._refuse(BusError(f"cannot be looked up: {error}", "missing"))
            return {}

    def _read(self, payload: str, rows: dict[str, bytes]) -> _Told | None:
        kind, rest = payload[:1], payload[1:]
        try:
            if kind == SEALED and self.seal is not None:
                envelope = decode_envelope(self.seal.open(from_text(rest)))
            elif kind == STORED and rest in rows:
                envelope = decode_envelope(rows[rest])
            elif kind == MESSAGE or (kind == STORED and self.seal is None):
                return None  # told, or refused, or not there
            else:
                raise BusError("not of this cluster", "forged" if kind in (SEALED, STORED) else "malformed")
            reception = self._inbox.admit(envelope, round(self._now() * 1000), trio.current_time())
        except BusError as error:
            self._refuse(error)
            return None
        return _Told(envelope, reception) if reception is not None else None

    def _tell(self, listener: BusListener, told: _Told, contents: dict[str, bytes]) -> None:
        envelope, reception = told
        node = envelope.node
        if reception.gap:
            self.gap()
        if reception.found:
            self._found(node)
            listener.item(node, Hello())
        for item in self._items(envelope, contents):
            if type(item) is not Hello and type(item) is not Bye:
                self.items += 1
                listener.item(node, item)
        if reception.lost:
            self._lost(node)
            listener.peer_lost(node)

    def _items(self, envelope: Envelope, contents: dict[str, bytes]) -> list[Item]:
        if not envelope.stored and not envelope.parts:
            return envelope.items
        try:
            if envelope.parts:
                return self._pieces.add(envelope)
            if envelope.stored not in contents:
                raise BusError("what it refers to is not there", "missing")
            sealed = contents[envelope.stored]
            return decode_content(self.seal.open(sealed, envelope.stored) if self.seal is not None else sealed)
        except BusError as error:
            self._refuse(error)
            self.gap()
            return []

    def _refuse(self, error: BusError) -> None:
        if self._metrics is not None:
            self._metrics.bus_refused.labels(error.reason).inc()
        now = trio.current_time()
        if now - self._complained.get(error.reason, -COMPLAINT_SECONDS) >= COMPLAINT_SECONDS:
            self._complained[error.reason] = now
            log.warning(BUS_REFUSED, reason=error.reason, error=str(error), repair=_REPAIRS.get(error.reason, ""))


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
