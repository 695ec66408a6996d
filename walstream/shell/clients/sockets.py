"""The seam between the server's edge and what it serves: sockets, their handlers, request heads and admission.

Nothing here waits. How bytes become messages is in ``websocket``; what messages mean is in ``connection``.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import msgspec
import trio

from walstream.protocol.websocket import BINARY, CLOSE, TEXT, frame, frame_header
from walstream.shell.clients.stream import SocketStream
from walstream.shell.delivery.outbox import Outbox, State

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013
"""Close codes (RFC 6455, 7.4.1, and the IANA registry): what is sent when is told in docs/discussion/closing.md."""

REASON_BYTES_MAX: Final = 123
"""A control frame holds 125 bytes; the code takes two (RFC 6455, 5.5)."""

REASON_TOO_SLOW: Final = "too_slow: the client does not read fast enough"
REASON_IDLE: Final = "idle: nothing was heard from the client"
REASON_DRAIN: Final = "Server requested disconnect"


class Head(msgspec.Struct, frozen=True):
    """One HTTP request head. ``headers``: lower-case names in the order sent. ``raw``: its bytes as they came.

    ``query``: decoded pairs in the order sent. ``peer``: address and port, or "" where there is none; the address alone
    of a client behind a trusted proxy. ``address``: of the client, without a port.
    """

    method: str
    path: str  # percent-decoded, without the query
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    peer: str
    raw: bytes
    http_version: str = "1.1"
    address: str = ""

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def parameter(self, name: str) -> str | None:
        """The first query parameter of that name."""
        return next((value for key, value in self.query if key == name), None)

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for a WebSocket (RFC 6455, 4.2.1)."""
        tokens = (
            token.strip().lower() for key, value in self.headers if key == "connection" for token in value.split(",")
        )
        return (self.header("upgrade") or "").strip().lower() == "websocket" and "upgrade" in tokens


class HttpReply(msgspec.Struct, frozen=True):
    """An answer that ends a connection before it became a WebSocket.

    ``why``: what refusals are counted by (``refusals``), "" for what is none. ``code``: a closer name of it.
    ``role`` and ``user``: of whom is refused, where that is known. ``delay_seconds``: wait that long before it.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay_seconds: float = 0.0
    why: str = ""
    code: str = ""
    role: str = ""
    user: str = ""


def refusal(status: int, text: str, *, delay_seconds: float = 0.0, why: str = "request") -> HttpReply:
    """A refused handshake as Supabase words it: ``{"error": text}``."""
    return HttpReply(status, msgspec.json.encode({"error": text}), (), delay_seconds, why)


class Socket:
    """One open WebSocket, for whoever answers it. Every method is synchronous and does nothing once it is closing.

    ``id``: unique in all nodes, the same in logs and in ``realtime.connections``. ``connected_at``: Unix seconds.
    Closing is a request: frames sent before it still go out, the handler gets no further message, and
    ``Handler.closed`` follows.
    """

    __slots__ = ("_stream", "close_at", "close_code", "connected_at", "corked", "id", "outbox", "peer", "pinged_at")

    def __init__(self, stream: SocketStream, peer: str, connected_at: float) -> None:
        self._stream = stream
        self.outbox: Outbox = stream.outbox
        self.peer = peer
        self.connected_at = connected_at
        self.id = f"conn-{uuid.uuid4()}"
        self.corked = False  # during the messages of one read: the answers go out together
        self.pinged_at = 0.0  # monotonic
        self.close_code = 0  # what was sent, 0 while open
        self.close_at = math.inf  # monotonic time of ``close`` or ``part``

    @property
    def heard_at(self) -> float:
        """Monotonic time of the newest inbound bytes."""
        return self._stream.heard_at

    @property
    def is_open(self) -> bool:
        """Whether frames sent now may still arrive."""
        return not self.close_code and self.outbox.state < State.SEALED

    def send(self, payload: bytes, binary: bool = False) -> None:
        """Send one message, framed here. Out at once, or together with the other answers to one read."""
        outbox = self.outbox
        outbox.push(frame_header(len(payload), BINARY if binary else TEXT) + payload)
        if not self.corked:
            outbox.flush()

    def send_urgent(self, payload: bytes) -> None:
        """Send one text message before all that waits: for heartbeat replies, which a slow client must get in time."""
        self.outbox.push_urgent(frame(payload))
        self.outbox.flush()

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye after all that is queued. The connection ends when the client answers, or a little later."""
        if not self.close_code:
            self._closing(code)
            self.outbox.seal(close_frame(code, reason))

    def close_now(self, code: int, reason: str = "") -> None:
        """Say goodbye in place of all that waits: for a client that reads too slowly to get it all."""
        if not self.close_code:
            self._closing(code)
            self.outbox.finish(close_frame(code, reason))

    def part(self, goodbye: bytes) -> None:
        """Send a whole close frame of the library's; a client that broke the protocol has no longer to answer it."""
        self.close_at = min(self.close_at, trio.current_time())
        self.outbox.seal(goodbye)

    def abort(self) -> None:
        """End the connection with a reset and no goodbye."""
        self._closing(self.close_code or 1006)
        self._stream.abort()

    def _closing(self, code: int) -> None:
        self.close_code = code
        self.close_at = trio.current_time()


def close_frame(code: int, reason: str = "") -> bytes:
    """A whole close frame; the reason is cut to what fits, between characters."""
    text = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()
    return frame(code.to_bytes(2, "big") + text, CLOSE)


class Handler(Protocol):
    """What answers one socket. All methods are synchronous; an exception closes that socket with 1011, no other."""

    def message(self, data: str | bytes) -> None:
        """One whole message of the client. May send and close."""
        ...

    def drain(self) -> None:
        """The server is going away: say goodbye. ``close(1012)`` follows."""
        ...

    def closed(self) -> None:
        """The connection is gone. Called exactly once, last; must not send."""
        ...


class Admitted(Protocol):
    """A handshake that is let in."""

    def handler(self, socket: Socket) -> Handler:
        """The handler of the socket, once it is open. May send."""
        ...

    def missed(self) -> None:
        """The client went before its handshake was answered: there will be no handler."""
        ...


Admit: TypeAlias = Callable[[Head], Admitted | HttpReply]
"""Decides about a handshake by its head alone."""
