"""Subscribers of the laboratory: small clients over trio-websocket that write down what they see, and always come back.

One kind keeps the position of its newest change and names it when it joins again; the other has no cursor, as official
clients. They live in a thread of their own, so that a scenario reads from top to bottom.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg2
import trio
import trio_websocket

from integration.faults.observed import Audit, Entry, Gap, Got, Joined, Log, Lost, Resumed, Untold, digest, share
from integration.fixtures.daemon import token
from walstream.history.position import Position

TOPIC = "realtime:laboratory"
CONNECT_SECONDS = 5.0
BEAT_SECONDS = 1.5
SILENCE_SECONDS = 5.0
RETRY_SECONDS = (0.02, 0.15)
_ENDS = (OSError, trio_websocket.HandshakeError, trio_websocket.ConnectionClosed, trio.TooSlowError)
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class Subscriber:
    """One client. ``resumes``: whether it names its position; ``restless``: seconds after which it hangs up by itself.

    ``tables``: what it asks for, each with an item of its own; None: one item with ``*``. ``patience``: seconds of
    silence after which it believes that nobody is there. While ``is_away`` is set it stays away; ``queue``: frames that
    are taken off the network before they are looked at.
    """

    queue = 200

    def __init__(
        self,
        name: str,
        url: str,
        *,
        resumes: bool,
        tables: Sequence[str] | None = None,
        restless: float = 0.0,
        patience: float = SILENCE_SECONDS,
        dsn: str = "",
    ) -> None:
        self.name = name
        self.url = url
        self.resumes = resumes
        self.tables = tables
        self.restless = restless
        self.patience = patience
        self.position = ""
        self.newest = 0
        self.is_subscribed = False
        self.floor: int | None = 0
        self.reads = True
        self.is_away = False
        self._dsn = dsn
        self._since = ""
        self._entries: list[Entry] = []
        self._rng = random.Random(name)

    def has(self, end: int) -> bool:
        """Whether it is there, and has everything up to ``end`` that it can have: some came too late for it."""
        late = not self.resumes and (self.floor is None or self.floor >= end)
        return self.is_subscribed and (late or self.newest >= end)

    def take(self, settled: int | None = None) -> Log:
        """Everything since the last call. ``settled``: this subscriber is known to have all that ends up to there."""
        entries = self._entries
        self._entries = [] if settled is None else [Joined(time.time(), settled)]
        return Log(self.name, None if self.tables is None else frozenset(self.tables), entries)

    def since(self, moment: float) -> list[Entry]:
        """What it wrote down from ``moment`` on, seconds since 1970."""
        return [entry for entry in list(self._entries) if entry.at >= moment]

    async def run(self) -> None:
        """Connect, listen, come back; for ever."""
        while True:
            while self.is_away:
                await trio.sleep(0.02)
            why = "hung up"
            try:
                with trio.move_on_after(self.restless * self._rng.uniform(0.3, 1.5) if self.restless else float("inf")):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._leave, nursery.cancel_scope)
                        await self._connect_and_listen(nursery)
            except* (
                OSError,
                trio_websocket.HandshakeError,
                trio_websocket.ConnectionClosed,
                trio.TooSlowError,
            ) as errors:
                why = _first(errors)
            if self._entries and not isinstance(self._entries[-1], Lost):
                self._entries.append(Lost(time.time(), why))
            self.is_subscribed = False
            await trio.sleep(self._rng.uniform(*RETRY_SECONDS))

    async def _leave(self, scope: trio.CancelScope) -> None:
        while not self.is_away:
            await trio.sleep(0.02)
        scope.cancel()

    async def _connect_and_listen(self, nursery: trio.Nursery) -> None:
        address = urlsplit(self.url)
        with trio.fail_after(CONNECT_SECONDS):
            stream = await trio.open_tcp_stream(str(address.hostname), int(address.port or 80))
        try:
            with trio.fail_after(CONNECT_SECONDS):
                connection = await trio_websocket.wrap_client_stream(
                    nursery, stream, address.netloc, f"{address.path}?apikey={token('anon')}&vsn=2.0.0",
                    max_message_size=64 << 20, message_queue_size=self.queue,
                )  # fmt: skip
            self._since = self.position if self.resumes else ""
            await connection.send_message(self._join().decode())
            nursery.start_soon(_beat, connection)
            while True:
                while not self.reads:
                    await trio.sleep(0.05)
                with trio.fail_after(self.patience):
                    message = await connection.get_message()
                await self._take(_decode(message))
        finally:
            # Whoever dies says no goodbye; and a server that is gone would not answer it. Nothing is awaited here: in a
            # cancelled scope that raises Cancelled, which hides what else went wrong.
            stream.socket.close()
            nursery.cancel_scope.cancel()

    def _join(self) -> bytes:
        more = {"since": self._since} if self._since else {}
        items = [{"event": "*", "schema": "public", "table": table, **more} for table in (self.tables or ("*",))]
        payload = {"config": {"postgres_changes": items, "broadcast": {}, "presence": {}, "private": False}}
        return encode(["1", "1", TOPIC, "phx_join", payload])

    async def _take(self, frame: Any) -> None:
        event, payload = frame[3], frame[4]
        if event == "postgres_changes":
            self._change(payload["data"])
        elif event == "system" and payload.get("extension") == "postgres_changes" and payload["status"] == "ok":
            await self._told(payload)
        elif event in ("phx_error", "phx_close") or (event == "phx_reply" and payload["status"] == "error"):
            raise OSError(f"the channel ended: {event} {payload}")

    async def _told(self, payload: Mapping[str, Any]) -> None:
        now = time.time()
        if payload.get("event") == "resumed":
            self._since = ""
            self._entries.append(Resumed(now))
            self.is_subscribed = True
        elif payload.get("event") == "gap":
            self._since = ""
            self.position = payload.get("position") or self.position
            self._entries.append(Gap(now, payload["reason"], await self._wal_end()))
            self.is_subscribed = True
        elif payload["message"] == "Subscribed to PostgreSQL":
            if not self.position or not self.resumes:
                self.floor = await self._wal_end()
                self._entries.append(Joined(now, self.floor))
            self.is_subscribed = True

    async def _wal_end(self) -> int | None:
        """Where the WAL ends now; None if nobody can be asked."""
        if not self._dsn:
            return None
        try:
            return await trio.to_thread.run_sync(_ask_wal_end, self._dsn, abandon_on_cancel=True)
        except psycopg2.Error:
            return None

    def _change(self, data: Mapping[str, Any]) -> None:
        if self._since:
            self._entries.append(Untold(time.time(), self._since))
            self._since = ""
        got = read_change(data)
        self.position, self.newest = data["position"], got.end
        self._entries.append(got)


async def _beat(connection: trio_websocket.WebSocketConnection) -> None:
    """Heartbeats, whose answers show that somebody is there; the official clients send them, too, if less often."""
    while True:
        await trio.sleep(BEAT_SECONDS)
        await connection.send_message('[null,"0","phoenix","heartbeat",{}]')


def _ask_wal_end(dsn: str) -> int:
    connection = psycopg2.connect(dsn, connect_timeout=2)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::bigint")
            return int(cursor.fetchall()[0][0])
    finally:
        connection.close()


def read_change(data: Mapping[str, Any]) -> Got:
    """A change as the wire has it."""
    table, operation = data["table"], data["type"]
    row, old = data.get("record") or {}, data.get("old_record") or {}
    position = Position.parse(data["position"])
    key = old.get("id") if operation == "DELETE" else row.get("id")
    audit = None
    own_share = moved = 0
    if table == "audit" and operation == "DELETE":
        pass  # trimmed, which tells of no transaction
    elif table == "audit":
        audit = Audit(row["writer"], row["number"], row["rows"], row["checksum"])
    else:
        own_share = share(table, operation, key, 0 if operation == "DELETE" else row.get("n"))
    if table == "accounts":
        moved = row["n"] - old["n"]
    return Got(
        time.time(), int(position.commit_lsn), position.xid, position.ordinal, table,
        digest(table, operation, row, key),
        data.get("last") is True, own_share, moved, audit,
    )  # fmt: skip


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return repr(error)[:200]


class Subscribers:
    """All of them, in a thread; used as a context manager. A bug of theirs is raised at the end."""

    def __init__(self, *members: Subscriber) -> None:
        self.members = members
        self._thread = threading.Thread(target=self._run, name="subscribers")
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._started = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> Subscribers:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._soon(self._scope.cancel)
        self._thread.join()
        if self._failure is not None:
            raise AssertionError("a subscriber failed") from self._failure

    def check(self) -> None:
        """Fails if a subscriber met something that it does not understand."""
        if self._failure is not None:
            raise AssertionError("a subscriber failed") from self._failure

    def take(self, settled: int | None = None) -> list[Log]:
        """See ``Subscriber.take``; of all at one moment."""
        found: list[Log] = []
        done = threading.Event()

        def take() -> None:
            found.extend(member.take(settled) for member in self.members)
            done.set()

        self._soon(take)
        assert done.wait(30), "the subscribers stand still"
        return found

    def _soon(self, function: Callable[[], object]) -> None:
        if self._token is not None and self._thread.is_alive():
            self._token.run_sync_soon(function)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._started.set()
        with self._scope:
            async with trio.open_nursery() as nursery:
                for member in self.members:
                    nursery.start_soon(member.run)
