"""Plain HTTP: one request on a connection of ours, answered by an ASGI application through hypercorn.

The only file that knows hypercorn, whose trio TCP server is no public interface: what is used of it is pinned by
tests/shell/clients/test_http_edge.py. Which paths there are is decided in ``http_app``.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from walstream.shell.clients.limits import HTTP_SECONDS, REFUSAL_SECONDS
from walstream.shell.clients.sockets import Head
from walstream.shell.clients.stream import SocketStream
from walstream.telemetry.log import HTTP_FAILED

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI 3 application; only ``http`` scopes reach it."""

_DROPPED: Final = frozenset({"connection", "keep-alive", "upgrade", "http2-settings", "proxy-connection"})
"""Headers about the connection: each of ours carries one request and never becomes HTTP/2."""

log = structlog.get_logger()


class _OneRequest(trio.abc.HalfCloseableStream):
    """Our stream as hypercorn sees it: its closing only marks the end, for what follows is up to us.

    ``head``: of the request, which comes first. What follows a request that has no body is read and thrown away.
    """

    def __init__(self, stream: SocketStream, head: Head) -> None:
        self._stream = stream
        self._head = _single_request_head(head)
        self._has_body = any(head.header(name) for name in ("content-length", "transfer-encoding"))
        self._reading: trio.CancelScope | None = None
        self._done = False

    @property
    def socket(self) -> socket.socket:
        return self._stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            await trio.lowlevel.checkpoint()
            first, self._head = self._head, b""
            return first
        if not self._done:
            with trio.CancelScope() as self._reading:
                data = await self._stream.receive_some(max_bytes)
                while data and not self._has_body:
                    data = await self._stream.receive_some(max_bytes)
                return data
        await trio.lowlevel.checkpoint()
        raise trio.ClosedResourceError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._done = True
        if self._reading is not None:
            self._reading.cancel()
        await trio.lowlevel.checkpoint()


class HttpServer:
    """Answers plain requests by ``application``, one per connection."""

    def __init__(self, application: Application) -> None:
        self._config = HypercornConfig()
        self._config.errorlog = None  # errors of the application are logged here, with their names
        self._config.include_server_header = False
        self._wrapper = ASGIWrapper(cast(Any, self._guard(application)))  # hypercorn's own TypedDicts for ASGI

    async def serve(self, stream: SocketStream, head: Head) -> None:
        """Answer the request that begins with ``head`` and close the connection, within HTTP_SECONDS.

        A connection is never kept for a second request: an upgrade that comes on it would be hypercorn's to answer.
        """
        stream.send_seconds = HTTP_SECONDS  # hypercorn shields its writes without a deadline
        with trio.move_on_after(HTTP_SECONDS):
            server = TCPServer(
                self._wrapper,
                self._config,
                WorkerContext(None),
                ConnectionState({"address": head.address}),
                cast(
                    Any, _OneRequest(stream, head)
                ),  # of an SSLStream's interface only what plain streams have is used
            )
            try:
                await server.run()
            finally:
                vars(server).pop("protocol", None)  # which holds the server
        await stream.linger(REFUSAL_SECONDS)

    def _guard(self, application: Application) -> Application:
        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            try:
                await application(scope, receive, send)
            except Exception:  # bulkhead: one request's bug; the application has answered 500 already
                log.exception(HTTP_FAILED, method=scope.get("method"), path=scope.get("path"))

        return guarded


def _single_request_head(head: Head) -> bytes:
    target = head.raw.split(b" ", 2)[1]
    lines = [f"{name}: {value}" for name, value in head.headers if name not in _DROPPED]
    lines.append("connection: close")
    start = head.method.encode() + b" " + target + b" HTTP/" + head.http_version.encode() + b"\r\n"
    return start + "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
