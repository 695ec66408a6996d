"""WebSockets: the handshake, inbound messages and the end of a connection, all by trio-websocket.

The only file that knows that library. Outbound frames are ready-made and go through the outbox; pings, idle sockets and
unanswered goodbyes are ``pinger``'s, and what messages mean is the handler's.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, cast

import structlog
import trio
import trio_websocket

from walstream.channel.rate import Bucket
from walstream.errors import Invariant, ProtocolError
from walstream.shell.clients.message_counter import MessageCounter
from walstream.shell.clients.sockets import (
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    REASON_TOO_SLOW,
    TRY_AGAIN_LATER,
    Admitted,
    Handler,
    Head,
    Socket,
    close_frame,
)
from walstream.shell.clients.stream import SocketStream
from walstream.shell.delivery.outbox import Outbox, State
from walstream.telemetry.log import HANDLER_FAILED, SOCKET_CLOSED, SOCKET_OPENED, SOCKET_TOO_SLOW, WEBSOCKET_FAILED

RECEIVE_BYTES: Final = 16 * 1024
MESSAGE_QUEUE: Final = RECEIVE_BYTES // 6 + 1
"""No read can finish more messages: a masked frame has at least six bytes, and one may have begun before."""

HANDSHAKE_SECONDS: Final = 5.0
"""For the library to take over a head that is complete; only a bug could use it up."""

FRAGMENTS_MAX: Final = 10_000
"""Frames of one message: empty ones are not bounded by its size."""

GOODBYE_SECONDS: Final = 2.0
"""For a peer to take our last words after it broke the protocol."""

BURST_SECONDS: Final = 10.0
"""Seconds' worth of frames that may come at once."""

REASON_TOO_MANY_FRAMES: Final = "too many frames per second"

DRAIN_SLICE: Final = 200
"""Sockets that say goodbye before other tasks get a turn."""

_TELLABLE: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1011})

log = structlog.get_logger()


class _Feed(trio.abc.Stream):
    """What the library takes for its stream: our socket, with the messages of each read handed on in between.

    The library's reader asks for bytes only after it has queued every message of the last ones. So it is here, in the
    reader's own task, that messages are fetched and handled: a connection needs no second task.
    """

    __slots__ = (
        "_counter", "_finished", "_frames", "_head", "_opened", "_waiting", "connection", "handler",
        "socket", "stream",
    )  # fmt: skip

    def __init__(self, stream: SocketStream, head: bytes, socket: Socket, max_frames_per_second: float) -> None:
        self.stream = stream
        self._frames = Bucket(max_frames_per_second, max_frames_per_second * BURST_SECONDS, trio.current_time())
        self.socket = socket
        self.connection: trio_websocket.WebSocketConnection | None = None
        self.handler: Handler | None = None
        self._head = head
        self._opened: trio.Event | None = trio.Event()
        self._counter = MessageCounter()
        self._waiting = 0  # messages in the library's queue
        self._finished = False

    def open(self, connection: trio_websocket.WebSocketConnection, handler: Handler) -> None:
        """The handshake is answered: frames may come in."""
        self.connection = connection
        self.handler = handler
        if self._opened is not None:
            self._opened.set()
            self._opened = None

    def give_up(self) -> None:
        """The handshake will not be answered."""
        self._finished = True
        if self._opened is not None:
            self._opened.set()
            self._opened = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, b""
            return head
        if self._opened is not None:
            await self._opened.wait()
        if self._waiting and self.connection is not None:
            await self._deliver(self.connection)
        if self._finished:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError
        data = await self.stream.receive_some(max_bytes)
        self._waiting = self._counter.feed(data)
        if self._counter.fragments > FRAGMENTS_MAX:
            self.socket.close(POLICY_VIOLATION, f"a message of more than {FRAGMENTS_MAX} frames")
            raise trio.BrokenResourceError
        if not self._frames.spend(self._counter.frames, trio.current_time()):
            self.socket.close(POLICY_VIOLATION, REASON_TOO_MANY_FRAMES)
            raise trio.BrokenResourceError
        return data

    async def _deliver(self, connection: trio_websocket.WebSocketConnection) -> None:
        socket = self.socket
        count, self._waiting = self._waiting, 0
        socket.corked = True
        try:
            for _ in range(count):
                self._handle(await connection.get_message())
        except trio_websocket.ConnectionClosed:
            pass
        finally:
            socket.corked = False
            socket.outbox.flush()

    def _handle(self, message: str | bytes) -> None:
        socket = self.socket
        if self.handler is None or not socket.is_open:
            return
        try:
            self.handler.message(message)
        except Exception:  # bulkhead: a bug met by one client's message ends that client's connection only
            log.exception(HANDLER_FAILED, session_id=socket.id, peer=socket.peer)
            socket.close(INTERNAL_ERROR, "internal error")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if data[0] == 0x88:  # a close frame, the library's last: nothing of ours may follow it (RFC 6455, 5.5.1)
            await trio.lowlevel.checkpoint()
            self.socket.part(bytes(data))
        else:
            await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The library is done with the connection; it says why only by a frame that it forgets for malformed input."""
        self._finished = True
        reason = self.connection.closed if self.connection is not None else None
        if reason is not None and reason.code in _TELLABLE:
            self.socket.outbox.seal(close_frame(reason.code, reason.reason or ""))
        await trio.lowlevel.checkpoint()


class _Guarded:
    """Stands for a nursery where the library starts its reader: what the reader raises must not end the nursery."""

    __slots__ = ("_run", "_start_soon")

    def __init__(self, nursery: trio.Nursery, run: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        self._start_soon = nursery.start_soon
        self._run = run

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._start_soon(self._run, reader)


class WebSockets:
    """The open sockets of this node: ``run`` owns one task per socket.

    ``on_overflow``: decides about a socket whose outbox refused a chunk, in the middle of a fan-out (see ``Outbox``).
    ``on_closed``: after the handler's ``closed``, with the close code that was sent or else received, or 1006.
    """

    def __init__(
        self,
        *,
        max_frame_bytes: int,
        max_frames_per_second: float = 0,
        on_overflow: Callable[[Socket], None] | None = None,
        on_closed: Callable[[Socket, int], None] | None = None,
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._max_frames_per_second = max_frames_per_second
        self._on_overflow = on_overflow or close_slow
        self._on_closed = on_closed
        self._feeds: dict[Outbox, _Feed] = {}
        self._nursery: trio.Nursery | None = None
        self._emptied: trio.Event | None = None
        self._sent_bytes = 0

    def relimit(self, max_frame_bytes: int, max_frames_per_second: float) -> None:
        """For sockets that open from now on."""
        self._max_frame_bytes, self._max_frames_per_second = max_frame_bytes, max_frames_per_second

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Socket]:
        """The sockets of this moment; opening and closing while iterating does no harm."""
        return iter([feed.socket for feed in self._feeds.values()])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all sockets, for ever. Cancelling it ends every connection that is still open."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def accept(self, stream: SocketStream, head: Head, admitted: Admitted) -> None:
        """Answer the handshake; the socket then lives in a task of ``run``.

        Raises ProtocolError, with nothing sent, if ``check_handshake`` does. Otherwise the stream is the socket's from
        here on, also when this is cancelled or the client has gone meanwhile.
        """
        check_handshake(head)
        if self._nursery is None:
            raise Invariant("WebSockets.accept without a running WebSockets.run")
        protocol = _first_protocol(head)
        socket = Socket(stream, head.peer, time.time())
        socket.outbox.on_overflow = self._overflowed
        feed = _Feed(stream, _canonical_head(head, protocol), socket, self._max_frames_per_second)
        self._feeds[socket.outbox] = feed
        guarded = _Guarded(self._nursery, partial(self._serve, feed))
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                request = await trio_websocket.wrap_server_stream(
                    cast(trio.Nursery, guarded),  # of which the library uses ``start_soon``, once
                    feed,
                    message_queue_size=MESSAGE_QUEUE,
                    max_message_size=self._max_frame_bytes,
                    receive_buffer_size=RECEIVE_BYTES,
                )
                connection = await request.accept(subprotocol=protocol)
            # No await between the answer and this: the client's first message must find a handler.
            feed.open(connection, admitted.handler(socket))
            log.debug(SOCKET_OPENED, session_id=socket.id, peer=socket.peer)
        except (trio_websocket.ConnectionClosed, trio.TooSlowError):
            pass
        finally:
            if feed.handler is None:
                feed.give_up()
                admitted.missed()
                stream.abort()
                self._forget(feed)

    @property
    def queued_bytes(self) -> int:
        """Unsent bytes of all sockets."""
        return sum(outbox.queued_bytes for outbox in self._feeds)

    @property
    def sent_bytes(self) -> int:
        """Bytes sent to all sockets, those that are closed included."""
        return self._sent_bytes + sum(outbox.sent_bytes for outbox in self._feeds)

    async def drain(self, code: int, reason: str) -> None:
        """Let every handler say goodbye, then close its socket with ``code``. Others get a turn now and then."""
        for number, feed in enumerate(list(self._feeds.values()), 1):
            if number % DRAIN_SLICE == 0:
                await trio.lowlevel.checkpoint()
            socket = feed.socket
            if feed.handler is not None and socket.is_open:
                try:
                    feed.handler.drain()
                except Exception:  # bulkhead: one client's goodbye must not keep the others from theirs
                    log.exception(HANDLER_FAILED, session_id=socket.id, peer=socket.peer)
            socket.close(code, reason)

    async def wait_empty(self) -> None:
        """Wait until no socket is open."""
        while self._feeds:
            if self._emptied is None:
                self._emptied = trio.Event()
            await self._emptied.wait()
        await trio.lowlevel.checkpoint()

    def _overflowed(self, outbox: Outbox) -> None:
        feed = self._feeds.get(outbox)
        if feed is not None:
            socket = feed.socket
            log.warning(SOCKET_TOO_SLOW, session_id=socket.id, peer=socket.peer, bytes=outbox.queued_bytes)
            self._on_overflow(socket)

    async def _serve(self, feed: _Feed, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
            await self._part(feed)
        except Exception:  # bulkhead: the library's reader raises on orders of frames that it did not expect
            log.exception(WEBSOCKET_FAILED, session_id=feed.socket.id, peer=feed.socket.peer)
        finally:
            self._closed(feed)
            feed.stream.close()
            self._forget(feed)

    async def _part(self, feed: _Feed) -> None:
        """Give a peer that is still there its last words."""
        code = _code(feed)
        self._closed(feed)
        outbox = feed.socket.outbox
        if outbox.state is State.SEALED and (outbox.queued_bytes or code in _TELLABLE):
            await feed.stream.linger(GOODBYE_SECONDS)

    def _closed(self, feed: _Feed) -> None:
        handler, feed.handler = feed.handler, None
        if handler is None:
            return
        socket, code = feed.socket, _code(feed)
        log.info(
            SOCKET_CLOSED,
            session_id=socket.id,
            peer=socket.peer,
            code=code,
            seconds=round(time.time() - socket.connected_at, 3),
            bytes=socket.outbox.sent_bytes,
        )
        try:
            handler.closed()
        except Exception:  # bulkhead: a bug in one handler's clean-up
            log.exception(HANDLER_FAILED, session_id=socket.id, peer=socket.peer)
        if self._on_closed is not None:
            self._on_closed(socket, code)

    def _forget(self, feed: _Feed) -> None:
        outbox = feed.socket.outbox
        if self._feeds.pop(outbox, None) is not None:
            self._sent_bytes += outbox.sent_bytes
        # The library's connection holds its stream, which is the feed: together they would stay until the collector
        # comes to what has lived for long.
        feed.connection = None
        if not self._feeds and self._emptied is not None:
            self._emptied.set()
            self._emptied = None


def close_slow(socket: Socket) -> None:
    """The default fate of an outbox beyond its limit: the client is told why, in place of what it did not read."""
    socket.close_now(TRY_AGAIN_LATER, REASON_TOO_SLOW)


def check_handshake(head: Head) -> None:
    """Raises ProtocolError where RFC 6455, 4.2.1 does: everything that the library would refuse by itself."""
    if not head.is_upgrade:
        raise ProtocolError("not a WebSocket handshake", repair="connect with a WebSocket client")
    if head.header("sec-websocket-version") != "13":
        raise ProtocolError("unsupported WebSocket version", repair="use Sec-WebSocket-Version: 13")
    try:
        key = base64.b64decode((head.header("sec-websocket-key") or "").strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise ProtocolError("Sec-WebSocket-Key is not 16 bytes in base64")


def _first_protocol(head: Head) -> str | None:
    """Browsers drop a connection that answers none of the subprotocols they asked for, whatever those are."""
    asked = (head.header("sec-websocket-protocol") or "").partition(",")[0].strip()
    return asked if asked.isascii() and asked.replace("-", "").replace(".", "").replace("_", "").isalnum() else None


def _canonical_head(head: Head, protocol: str | None) -> bytes:
    """The handshake in as few bytes as possible: the library keeps it for as long as the connection lives."""
    asked = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {(head.header('sec-websocket-key') or '').strip()}\r\n{asked}\r\n"
    ).encode()


def _code(feed: _Feed) -> int:
    if feed.socket.close_code:
        return feed.socket.close_code
    reason = feed.connection.closed if feed.connection is not None else None
    return int(reason.code) if reason is not None else 1006
