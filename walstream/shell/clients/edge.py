"""The server's edge: listeners, accepted connections, and what each of them turns out to want.

A connection becomes a WebSocket (``websocket``), one plain request (``http_edge``) or a refusal; who may come in is
decided by the ``Admit`` that is handed in.
"""

from __future__ import annotations

import errno
import socket
import ssl
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from walstream.channel.origins import Origins
from walstream.errors import ConfigError, ProtocolError
from walstream.shell.clients.gate import Gate
from walstream.shell.clients.head import HeadError, read_head
from walstream.shell.clients.http_edge import Application, HttpServer
from walstream.shell.clients.http_headers import Pairs, security_headers
from walstream.shell.clients.limits import (
    FRAMES_PER_MESSAGE,
    HURRY_SECONDS,
    PENDING_MAX,
    PLAIN_MAX,
    PROBES_MAX,
    REFUSAL_SECONDS,
    EdgeLimits,
)
from walstream.shell.clients.pinger import tend_all
from walstream.shell.clients.readiness import Readiness
from walstream.shell.clients.refusals import Ledger, refused
from walstream.shell.clients.sockets import (
    POLICY_VIOLATION,
    REASON_DRAIN,
    SERVICE_RESTART,
    TRY_AGAIN_LATER,
    Admit,
    Admitted,
    Head,
    HttpReply,
    Socket,
    refusal,
)
from walstream.shell.clients.stream import SocketStream
from walstream.shell.clients.tls_files import TlsFiles
from walstream.shell.clients.tls_stream import TlsStream
from walstream.shell.clients.websocket import WebSockets, check_handshake
from walstream.shell.delivery.outbox import Drains, Outbox
from walstream.shell.delivery.tls import TlsEngine, TlsOutbox
from walstream.shell.health import Health
from walstream.telemetry.log import CONNECTION_FAILED, LISTENER_OVERLOADED, SERVER_DRAINING
from walstream.telemetry.metrics import Metrics

SOCKET_PATHS: Final = frozenset({"/socket/websocket", "/realtime/v1/websocket"})
PROBES: Final = frozenset({"/live", "/ready", "/readyz"})

BACKLOG: Final = 4096
ACCEPT_BATCH: Final = 8
"""Connections that are accepted in one turn of the event loop; a handshake costs more than most messages."""

OVERLOAD_PAUSE_SECONDS: Final = 0.1
OVERLOADED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""accept(2) fails so while the process or the machine is short of something; the client is still waiting."""

GONE_ALREADY: Final = frozenset(
    {
        errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETUNREACH, errno.EOPNOTSUPP, errno.EPERM, errno.EINTR,
    }
)  # fmt: skip
"""accept(2) hands out the errors of connections that ended in the backlog: the next one may be well."""

Address = tuple[str, int]

log = structlog.get_logger()


class Guards(NamedTuple):
    """Who may come in beside what ``Admit`` says."""

    gate: Gate
    origins: Origins
    tls: TlsFiles | None = None


class Edge:
    """Everything between the network and the handlers of one node.

    Tasks of ``run``: one per listener, one per connection that has not become a WebSocket, one per WebSocket, one per
    outbox that waits for its reader, one pinger. ``guards``: by default nobody is counted, and every page may connect.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        limits: EdgeLimits,
        admit: Admit,
        application: Application,
        health: Health,
        metrics: Metrics,
        guards: Guards | None = None,
    ) -> None:
        self.sockets = WebSockets(
            max_frame_bytes=limits.max_frame_bytes,
            max_frames_per_second=limits.max_messages_per_second * FRAMES_PER_MESSAGE,
            on_closed=self._count_close,
        )
        self._guards = guards or Guards(Gate(), Origins())
        self._ledger = Ledger(metrics)
        health.clients = self.sockets.__len__
        self._metrics = metrics
        metrics.watch("connections", self.sockets.__len__)
        metrics.watch("bytes_out", lambda: self.sockets.sent_bytes)
        metrics.watch("outbox_bytes", lambda: self.sockets.queued_bytes)
        self._host = host
        self._port = port
        self._limits = limits
        self._admit = admit
        self._http = HttpServer(application)
        self._health = health
        self._drains = Drains()
        self._readiness = Readiness()
        self._accepting = trio.CancelScope()
        self._everything: trio.CancelScope | None = None
        self._pending = 0  # connections that are no WebSockets (yet)
        self._plain = 0
        self._probes = 0
        self._fewer_pending: trio.Event | None = None

    async def run(self, *, task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``drain`` is done; started with the addresses that are listened on.

        Raises ConfigError where it cannot listen. Cancelling it ends every connection at once.
        """
        listeners = await open_listeners(self._host, self._port)
        try:
            async with trio.open_nursery() as nursery:
                self._everything = nursery.cancel_scope
                await nursery.start(self._readiness.run)
                await nursery.start(self._drains.run)
                await nursery.start(self.sockets.run)
                nursery.start_soon(self._tend)
                task_status.started([listener.getsockname()[:2] for listener in listeners])
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept_all, listener, nursery)
                for listener in listeners:
                    listener.close()
                await trio.sleep_forever()
        finally:
            for listener in listeners:
                listener.close()

    def relimit(self, limits: EdgeLimits) -> None:
        """Go by other limits from now on; of ``ping_seconds`` and ``idle_seconds`` those of the start stay.

        Connections that are open keep their ``outbox_bytes`` and bounds of frames.
        """
        self._limits = limits
        self.sockets.relimit(limits.max_frame_bytes, limits.max_messages_per_second * FRAMES_PER_MESSAGE)

    async def drain(self) -> None:
        """Not ready, no more WebSockets, all there are closed with 1012 after their goodbyes; then ``run`` ends.

        Until they are gone, requests are still answered: whoever asks ``/ready`` is told to send clients elsewhere.
        Waits at most ``drain_seconds`` for what is queued to be read. Cancelling it ends every connection at once.
        """
        log.info(SERVER_DRAINING, clients=len(self.sockets), seconds=self._limits.drain_seconds)
        self._health.drain()
        try:
            with trio.move_on_after(self._limits.drain_seconds):
                await self.sockets.drain(SERVICE_RESTART, REASON_DRAIN)
                await self.sockets.wait_empty()
                self._accepting.cancel()
                while self._pending:
                    await self._wait_for_fewer_pending()
        finally:
            for open_socket in self.sockets:
                open_socket.abort()
            if self._everything is not None:
                self._everything.cancel()

    async def _tend(self) -> None:
        limits = self._limits
        await tend_all(self.sockets, ping_seconds=limits.ping_seconds, idle_seconds=limits.idle_seconds)

    def _count_close(self, closed: Socket, code: int) -> None:
        self._metrics.closed(code)
        if closed.close_code == POLICY_VIOLATION:
            self._metrics.refused("frames")
        if closed.close_code == TRY_AGAIN_LATER:
            self._metrics.slow_closes.inc()

    # -- accepting

    async def _accept_all(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            while self._pending >= PENDING_MAX:
                await self._wait_for_fewer_pending()
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPT_BATCH):
                try:
                    accepted, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in OVERLOADED:
                        log.warning(LISTENER_OVERLOADED, reason=error.strerror, clients=len(self.sockets))
                        await trio.sleep(OVERLOAD_PAUSE_SECONDS)
                        break
                    if error.errno in GONE_ALREADY:
                        continue
                    raise
                self._pending += 1
                nursery.start_soon(self._connection, accepted, _peer(address))

    async def _wait_for_fewer_pending(self) -> None:
        if self._fewer_pending is None:
            self._fewer_pending = trio.Event()
        await self._fewer_pending.wait()

    async def _connection(self, accepted: socket.socket, peer: str) -> None:
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = self._stream(accepted)
        handed_over = False
        try:
            handed_over = await self._serve(stream, peer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (ssl.SSLError, trio.TooSlowError) as error:
            reply = HttpReply(0, why="tls", code=getattr(error, "reason", None) or "too slow")
            self._ledger.refused(reply, peer, None, trio.current_time())
        except Exception:  # bulkhead: a bug met by one connection ends that connection only
            log.exception(CONNECTION_FAILED, peer=peer)
        finally:
            if not handed_over:
                stream.close()
            self._pending -= 1
            if self._fewer_pending is not None:
                self._fewer_pending.set()
                self._fewer_pending = None

    def _stream(self, accepted: socket.socket) -> SocketStream:
        limit, wake = self._limits.outbox_bytes, self._drains.wake
        if self._guards.tls is None:
            return SocketStream(accepted, Outbox(accepted, limit, wake), self._readiness)
        engine = TlsEngine(accepted, self._guards.tls.context())
        return TlsStream(accepted, engine, TlsOutbox(accepted, engine, limit, wake), self._readiness)

    # -- one connection

    async def _serve(self, stream: SocketStream, peer: str) -> bool:
        """Returns whether the stream is a WebSocket's now. Raises what ``TlsStream.handshake`` does."""
        if isinstance(stream, TlsStream):
            await stream.handshake(self._head_seconds())
        try:
            head = await read_head(stream, peer, seconds=self._head_seconds())
        except HeadError as error:
            await self._refuse(stream, peer, refusal(error.status, error.message))
            return False
        if head is None:
            return False
        head = self._with_address(head)
        if head.path.rstrip("/") in SOCKET_PATHS:
            return await self._upgrade(stream, head)
        await self._answer_plain(stream, head)
        return False

    def _head_seconds(self) -> float:
        """Whoever says nothing holds a place that others wait for, once there are few."""
        seconds = self._limits.head_seconds
        return seconds if self._pending <= PENDING_MAX // 2 else min(seconds, HURRY_SECONDS)

    def _with_address(self, head: Head) -> Head:
        host = head.peer.rpartition(":")[0].strip("[]")
        forwarded = [value for name, value in head.headers if name == "x-forwarded-for"]
        address = self._guards.gate.address(host, forwarded)
        return msgspec.structs.replace(head, address=address, peer=head.peer if address == host else address)

    async def _answer_plain(self, stream: SocketStream, head: Head) -> None:
        is_probe = head.path in PROBES
        if self._probes >= PROBES_MAX if is_probe else self._plain >= PLAIN_MAX:
            await self._refuse(stream, head.peer, refused("busy"), head)
            return
        self._probes += is_probe
        self._plain += not is_probe
        try:
            await self._http.serve(stream, head)
        finally:
            self._probes -= is_probe
            self._plain -= not is_probe

    async def _upgrade(self, stream: SocketStream, head: Head) -> bool:
        answer = self._answer(head)
        if isinstance(answer, HttpReply):
            await self._refuse(stream, head.peer, answer, head)
            return False
        await self.sockets.accept(stream, head, answer)
        return True

    def _answer(self, head: Head) -> Admitted | HttpReply:
        if head.method == "OPTIONS":  # a preflight of a client that speaks HTTP to the socket's path
            return HttpReply(204, b"", (("access-control-allow-headers", "*"),))
        if head.method != "GET":
            return refusal(400, "A WebSocket begins with GET")
        try:
            check_handshake(head)
        except ProtocolError as error:
            version = (("sec-websocket-version", "13"),)
            return HttpReply(400, refusal(400, str(error)).body, version, why="request")
        if self._health.draining:
            return refused("draining")
        if len(self.sockets) >= self._limits.max_connections:
            return refused("node_connections")
        return self._admit(head)

    async def _refuse(self, stream: SocketStream, peer: str, reply: HttpReply, head: Head | None = None) -> None:
        if reply.why:
            self._ledger.refused(reply, peer, head, trio.current_time())
        if reply.delay_seconds:
            await trio.sleep(reply.delay_seconds)
        origin, host = (head.header("origin"), head.header("host")) if head is not None else (None, None)
        further = [
            *self._guards.origins.allow_header(origin, host),
            *security_headers(https=self._guards.tls is not None),
        ]
        await stream.send_all(http_answer(reply, further))
        await stream.linger(REFUSAL_SECONDS)


async def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of ``host``; port 0 becomes the same free port for all of them.

    Raises ConfigError, naming what to change.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        repair = "listen takes an address of this machine, such as 127.0.0.1:3100 or 0.0.0.0:3100"
        raise ConfigError(f"cannot listen on {where}: {error.strerror}", repair=repair) from error
    listeners: list[socket.socket] = []
    for family, address in dict.fromkeys((family, sockaddr[0]) for family, _, _, _, sockaddr in found):
        free = listeners[0].getsockname()[1] if listeners else port
        try:
            listeners.append(_listen(family, str(address), free))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                continue  # "localhost" has an IPv6 address on machines without IPv6
            for listener in listeners:
                listener.close()
            raise ConfigError(f"cannot listen on {where}: {error.strerror}", repair=_repair(error)) from error
    if not listeners:
        raise ConfigError(f"cannot listen on {where}: none of its addresses is on this machine")
    return listeners


def _listen(family: int, address: str, port: int) -> socket.socket:
    dual = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    listener.setblocking(False)
    return listener


def _repair(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there: stop it, or choose another port with WALSTREAM_LISTEN=host:port"
    if error.errno == errno.EACCES:
        return "ports below 1024 need a privilege: choose another with WALSTREAM_LISTEN=host:port"
    return "set WALSTREAM_LISTEN to host:port with an address of this machine"


def _peer(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def http_answer(reply: HttpReply, further: Pairs = ()) -> bytes:
    """The bytes of an answer after which the connection ends. ``further``: headers for browsers."""
    reason = HTTPStatus(reply.status).phrase if reply.status in HTTPStatus.__members__.values() else ""
    given = {name.lower() for name, _ in reply.headers}
    headers = [f"{name}: {value}" for name, value in (*reply.headers, *further)]
    if reply.body and "content-type" not in given:
        headers.append("content-type: application/json")
    headers += [f"content-length: {len(reply.body)}", "connection: close"]
    return f"HTTP/1.1 {reply.status} {reason}\r\n".encode() + "\r\n".join(headers).encode() + b"\r\n\r\n" + reply.body
