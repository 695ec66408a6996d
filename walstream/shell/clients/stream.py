"""SocketStream: a trio stream around one plain socket that shares its writer with an outbox.

Ready-made frames and whatever a library sends go through the same queue, so neither ever lands inside the other.
What the bytes mean is the business of ``head``, ``websocket`` and ``http_edge``.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from typing import Final

import trio

from walstream.shell.clients.readiness import Readiness
from walstream.shell.delivery.outbox import Outbox, State

SEND_BYTES: Final = 64 * 1024
"""``send_all`` waits while more than this is unsent: whoever makes us answer has to read the answers."""

LINGER_BYTES: Final = 1024 * 1024
"""Unwanted input that is read and thrown away after a refusal, so that the peer gets to see it (see ``linger``)."""

TRIO: Final = Readiness()
"""Does not run: trio's own."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_RECEIVE_BYTES: Final = 16 * 1024


class SocketStream(trio.abc.HalfCloseableStream):
    """One accepted connection: an own, non-blocking stdlib socket, hence one file descriptor.

    ``receive_some`` first gives back what was read already (``unread``). ``heard_at``: monotonic time of the newest
    inbound bytes. ``send_seconds``: how long ``send_all`` waits for a peer that does not read. Not safe for two
    readers at once. ``readiness``: by which it waits for something to read. ``tls_stream.TlsStream`` is one that speaks
    TLS.
    """

    __slots__ = ("_readiness", "_replay", "_sock", "heard_at", "outbox", "send_seconds")

    def __init__(self, sock: socket.socket, outbox: Outbox, readiness: Readiness = TRIO) -> None:
        self._sock = sock
        self._readiness = readiness
        self._replay = b""
        self.outbox = outbox
        self.heard_at = trio.current_time()
        self.send_seconds = math.inf

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for its addresses."""
        return self._sock

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._sock.fileno() == -1

    def unread(self, data: bytes) -> None:
        """Put bytes back: they come first at the next ``receive_some``."""
        self._replay = data + self._replay

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data`` behind what is queued and write. Waits while the peer is behind by ``SEND_BYTES``.

        The bytes are queued whole or, when cancelled before that, not at all. Raises trio.BrokenResourceError when the
        connection is gone, closed, or stalled for ``send_seconds``; bytes after an outbox's last frame are dropped.
        """
        # Before the write, not after it: a caller that acts on the sent bytes then does so before anybody else.
        await trio.lowlevel.checkpoint()
        outbox = self.outbox
        if outbox.state is State.DEAD or self.closed:
            raise trio.BrokenResourceError("the connection is closed")
        if outbox.queued_bytes + len(data) > outbox.limit_bytes:
            await self._wait_below(1)
        if data and outbox.push(bytes(data)):
            outbox.flush()
        if outbox.queued_bytes >= SEND_BYTES:
            await self._wait_below(SEND_BYTES)

    async def _wait_below(self, size: int) -> None:
        with trio.move_on_after(self.send_seconds) as waiting:
            await self.outbox.wait_below(size)
        if waiting.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError("the peer does not read")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until everything queued is sent."""
        await self.outbox.wait_empty()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, b"" at the end. Raises trio.BrokenResourceError (reset) or trio.ClosedResourceError."""
        if self._replay:
            await trio.lowlevel.checkpoint()
            size = max_bytes or len(self._replay)
            data, self._replay = self._replay[:size], self._replay[size:]
            return data
        while True:
            if self._sock.fileno() == -1:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError
            await self._readiness.wait_readable(self._sock)
            try:
                data = self._sock.recv(max_bytes or _RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self.heard_at = trio.current_time()
            return data

    async def send_eof(self) -> None:
        """Send what is queued, then end our half."""
        await self.outbox.wait_empty()
        self._shut_down()

    async def aclose(self) -> None:
        """Close at once; what the kernel has taken is still delivered. Idempotent."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """``aclose`` without a checkpoint. Tasks that wait for the socket get trio.ClosedResourceError."""
        if self._sock.fileno() != -1:
            self._readiness.notify_closing(self._sock)
            self._sock.close()
        self.outbox.die()

    def abort(self) -> None:
        """Close with a reset: whatever is unsent, here and in the kernel, is dropped."""
        if self._sock.fileno() != -1:
            with contextlib.suppress(OSError):  # a socket that its peer has reset takes no options on some systems
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    async def linger(self, seconds: float) -> None:
        """Send what is queued, end our half, and read what still comes, at most ``seconds``; then close.

        A socket closed with unread input resets the connection, and the peer may then lose our last words.
        """
        with trio.move_on_after(seconds):
            await self.outbox.wait_empty()
            self._shut_down()
            try:
                left = LINGER_BYTES
                while left > 0:
                    data = await self.receive_some()
                    if not data:
                        break
                    left -= len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        self.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # not connected any more, or closed
            self._sock.shutdown(socket.SHUT_WR)
