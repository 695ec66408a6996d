"""``walstream listen --live``: what the running daemon sends to its clients, seen as one of them.

The protocol is Supabase's in its second form (``protocol.phoenix``); what is printed, is ``listen_output``'s.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlencode

import msgspec
import trio
import trio_websocket

from walstream.auth import tokens
from walstream.capture.names import parse_table_pattern
from walstream.channel.topic import feed_topic
from walstream.errors import EnvironmentFailure, TokenError, WalstreamError
from walstream.protocol.snapshot import EVENT
from walstream.shell.commands.daemon_health import reachable, tls_context
from walstream.shell.commands.listen import APPLICATION_NAME, Wish, find
from walstream.shell.commands.listen_output import Output, leaves
from walstream.shell.database import slots
from walstream.shell.database.postgres import connection

if TYPE_CHECKING:
    from walstream.shell.database.tables import Target

CONNECT_SECONDS: Final = 10.0
HEARTBEAT_SECONDS: Final = 20.0
CLOSE_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 1.0
TOKEN_SECONDS: Final = 30 * 86_400
ROLE: Final = "service_role"
OPERATIONS: Final = frozenset({"INSERT", "UPDATE", "DELETE", "TRUNCATE"})
JOIN_REF: Final = "1"

_PATH: Final = "/realtime/v1/websocket"
_REFUSED: Final = (401, 403)
_NO_DAEMON: Final = "walstream serve starts one; without --live none is needed; WALSTREAM_LISTEN says where it is"


class _Frame(msgspec.Struct, array_like=True):
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: msgspec.Raw


class _Named(msgspec.Struct):
    """The names inside the feed's message: a wildcard's topic does not tell them."""

    schema: str
    table: str


class _Response(msgspec.Struct):
    reason: str = ""


class _Reply(msgspec.Struct):
    status: str
    response: _Response = msgspec.field(default_factory=_Response)


class _System(msgspec.Struct):
    status: str = ""
    message: str = ""
    event: str = ""
    reason: str = ""


class _Page(msgspec.Struct):
    """A page of a snapshot. ``rows`` go on as they are."""

    schema: str
    table: str
    rows: list[msgspec.Raw]
    total: int
    estimate: int | None
    last: bool


class _PageFrame(msgspec.Struct):
    data: _Page


class Beginning(NamedTuple):
    """``since``: go on after the change with this position; ``snapshot``: the table's rows come first."""

    since: str = ""
    snapshot: bool = False


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_page = msgspec.json.Decoder(_PageFrame).decode
_decode_system = msgspec.json.Decoder(_System).decode
_encode = msgspec.json.Encoder().encode
HEARTBEAT: Final = '[null,"heartbeat","phoenix","heartbeat",{}]'


class DaemonUnreachable(EnvironmentFailure):
    """No daemon to be had, or it went away."""

    code = "daemon_unreachable"


LIVE: Final = Beginning()


class Client:
    """One WebSocket in one topic. ``token``: None for one of our own making. ``run`` once."""

    def __init__(self, wish: Wish, output: Output, token: str | None, beginning: Beginning = LIVE) -> None:
        self._wish = wish
        self._beginning = beginning
        self._told_at = 0.0
        self._config = wish.config
        self._output = output
        self._token = token
        self._topic = ""

    async def run(self) -> None:
        """Print changes until cancelled. Raises WalstreamError."""
        target, pid = await trio.to_thread.run_sync(self._look_up, abandon_on_cancel=True)
        self._output.pid = pid
        named = parse_table_pattern(target.pattern)
        self._topic = feed_topic(named.schema or "*", named.table or "*")
        token = self._token if self._token is not None else self._own_token()
        try:
            async with trio.open_nursery() as nursery:
                socket = await self._connect(nursery, token)
                try:
                    nursery.start_soon(self._beat, socket)
                    await self._converse(socket, token)
                finally:
                    with trio.move_on_after(CLOSE_SECONDS, shield=True):
                        await socket.aclose()
        except* trio_websocket.HandshakeError as group:  # raised by a task of the library
            for error in leaves(group):
                raise self._rejected(error) from error

    def _look_up(self) -> tuple[Target, int]:
        """The tables, and the process that streams the daemon's slot (0 if none does)."""
        with connection(self._wish.dsn, APPLICATION_NAME, search_path=None) as opened:
            target = find(opened, self._wish.table, self._config.schema)
            slot = slots.find(opened, self._config.slot)
        return target, (slot.active_pid or 0) if slot is not None else 0

    def _own_token(self) -> str:
        """A token for service_role; "" where there is no secret, which a daemon without keys does not mind."""
        if not self._config.jwt_secret:
            return ""
        now = int(time.time())
        return tokens.mint(self._config.jwt_secret, {"role": ROLE, "iat": now, "exp": now + TOKEN_SECONDS})

    async def _connect(self, nursery: trio.Nursery, token: str) -> trio_websocket.WebSocketConnection:
        host, port = reachable(self._config.host), self._config.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        context = tls_context(self._config)
        query = urlencode({"vsn": "2.0.0", "apikey": token})
        try:
            with trio.fail_after(CONNECT_SECONDS):
                return await trio_websocket.connect_websocket_url(
                    nursery,
                    f"{'wss' if context else 'ws'}://{address}{_PATH}?{query}",
                    ssl_context=context,
                    max_message_size=self._config.outbox_bytes,
                )
        except (OSError, trio.TooSlowError) as error:
            raise DaemonUnreachable(
                f"no daemon answers on {address}: {str(error) or type(error).__name__}", repair=_NO_DAEMON
            ) from error

    def _rejected(self, error: BaseException) -> WalstreamError:
        if not isinstance(error, trio_websocket.ConnectionRejected):
            text = f"what listens on {self._config.listen} makes no WebSocket: {error}"
            return DaemonUnreachable(text, repair=_NO_DAEMON)
        if error.status_code not in _REFUSED:
            return DaemonUnreachable(f"the daemon on {self._config.listen} answers {error.status_code}")
        hint = "" if self._config.jwt_secret or self._token else ": give --token, or set WALSTREAM_JWT_SECRET"
        return TokenError("Unauthorized", f"the daemon refuses the token ({error.status_code}){hint}")

    async def _converse(self, socket: trio_websocket.WebSocketConnection, token: str) -> None:
        join: dict[str, object] = {"config": {}}
        if self._beginning.since:
            join["since"] = self._beginning.since
        if self._beginning.snapshot:
            join["snapshot"] = True
        if token:
            join["access_token"] = token
        try:
            await socket.send_message(_encode([JOIN_REF, JOIN_REF, self._topic, "phx_join", join]).decode())
            while True:
                await self._take(await socket.get_message())
        except trio_websocket.ConnectionClosed as error:
            reason = error.reason.reason if error.reason is not None and error.reason.reason else "no reason given"
            raise DaemonUnreachable(f"the daemon closed the connection: {reason}") from error
        except msgspec.DecodeError as error:
            raise EnvironmentFailure(f"what answers on {self._config.listen} is no daemon of ours: {error}") from error

    async def _beat(self, socket: trio_websocket.WebSocketConnection) -> None:
        while True:
            await trio.sleep(HEARTBEAT_SECONDS)
            with contextlib.suppress(trio_websocket.ConnectionClosed):  # who reads it says so
                await socket.send_message(HEARTBEAT)

    async def _take(self, text: str | bytes) -> None:
        frame = _decode_frame(text)
        if frame.topic != self._topic:
            return
        payload = bytes(frame.payload)
        if frame.event in OPERATIONS:
            named = _decode_named(payload)
            self._output.add(named.schema, named.table, payload)
            await self._output.flush()
        elif frame.event == EVENT:
            await self._take_page(_decode_page(payload).data)
        elif frame.event == "phx_reply" and frame.ref == JOIN_REF:
            reply = _decode_reply(payload)
            if reply.status != "ok":
                raise EnvironmentFailure(f"the daemon refuses {self._topic}: {reply.response.reason}")
        elif frame.event == "system":
            told = _decode_system(payload)
            if told.event:
                self._wish.say(f"{self._topic}: {told.message}{f' [{told.reason}]' if told.reason else ''}")
            elif told.status == "ok":
                self._wish.say(f"{self._topic}: {told.message}; Ctrl+C ends it")
            else:
                raise EnvironmentFailure(f"the daemon refuses {self._topic}: {told.message}")
        elif frame.event in ("phx_error", "phx_close"):
            raise DaemonUnreachable(f"the daemon ended the topic {self._topic}")

    async def _take_page(self, page: _Page) -> None:
        """Print its rows, each in the form of a change; how far it is, once a second."""
        names = b'"schema":%b,"table":%b' % (_encode(page.schema), _encode(page.table))
        for row in page.rows:
            self._output.add(
                page.schema, page.table, b'{"operation":"SNAPSHOT",%b,"new":%b,"old":null}' % (names, bytes(row))
            )
        await self._output.flush()
        now = trio.current_time()
        if now - self._told_at >= PROGRESS_SECONDS and not page.last:
            self._told_at = now
            expected = f" of about {page.estimate}" if page.estimate else ""
            self._wish.say(f"{self._topic}: {page.total}{expected} rows")
        elif page.last:
            self._wish.say(f"{self._topic}: all {page.total} rows")
