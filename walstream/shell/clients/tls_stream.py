"""TlsStream: a connection's bytes in, decrypted, and its handshake; bytes out go through a ``TlsOutbox``."""

from __future__ import annotations

import socket
import ssl
from typing import Final

import trio

from walstream.shell.clients.readiness import Readiness
from walstream.shell.clients.stream import TRIO, SocketStream
from walstream.shell.delivery.tls import TlsEngine, TlsOutbox

_RECEIVE_BYTES: Final = 16 * 1024


class TlsStream(SocketStream):
    """A ``SocketStream`` whose peer speaks TLS. ``handshake`` comes first."""

    __slots__ = ("_box", "_engine")

    def __init__(self, sock: socket.socket, engine: TlsEngine, outbox: TlsOutbox, readiness: Readiness = TRIO) -> None:
        super().__init__(sock, outbox, readiness)
        self._engine = engine
        self._box = outbox

    async def handshake(self, seconds: float) -> None:
        """Until both sides have their keys.

        Raises ssl.SSLError, trio.TooSlowError, trio.BrokenResourceError or trio.ClosedResourceError, after which the
        connection is of no use.
        """
        with trio.fail_after(seconds):
            while True:
                try:
                    done = self._engine.handshake()
                except ssl.SSLError:
                    await self._send_rest()  # the alert that says why
                    raise
                await self._send_rest()
                if done:
                    return
                await self._feed()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, b"" at the end. Raises trio.BrokenResourceError (reset, bad TLS) or trio.ClosedResourceError."""
        if self._replay:
            return await super().receive_some(max_bytes)
        while True:
            if self._sock.fileno() == -1:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError
            try:
                data = self._engine.read(max_bytes or _RECEIVE_BYTES)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._box.answered()
            if data is not None:
                await trio.lowlevel.checkpoint()
                return data
            await self._feed()

    async def _feed(self) -> None:
        while True:
            if self._sock.fileno() == -1:
                raise trio.ClosedResourceError
            await self._readiness.wait_readable(self._sock)
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self.heard_at = trio.current_time()
            self._engine.feed(data)
            return

    async def _send_rest(self) -> None:
        try:
            self._engine.flush()
            while self._engine.rest:
                await trio.lowlevel.wait_writable(self._sock)
                self._engine.flush()
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def _shut_down(self) -> None:
        self._engine.say_goodbye()
        super()._shut_down()
