"""Sockets, streams and handlers for the tests of the server's edge; no test lives here."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from walstream.shell.clients.sockets import Head, Socket
from walstream.shell.clients.stream import SocketStream
from walstream.shell.clients.websocket import WebSockets
from walstream.shell.delivery.outbox import Drains, Outbox

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    "Host: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
)


@contextmanager
def socket_pair(*, send_buffer: int | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected, non-blocking sockets; ``send_buffer`` bounds what the kernel takes from the first."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if send_buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    """Everything that can be read now."""
    parts = []
    while True:
        try:
            part = sock.recv(1 << 20)
        except BlockingIOError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


async def read_until_closed(sock: socket.socket) -> bytes:
    """Everything until the peer ends; a reset ends it, too."""
    parts = []
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            part = sock.recv(1 << 20)
        except ConnectionError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    """That many bytes."""
    data = b""
    while len(data) < size:
        await trio.lowlevel.wait_readable(sock)
        part = sock.recv(size - len(data))
        assert part, f"ended after {data!r}"
        data += part
    return data


async def read_head_text(sock: socket.socket) -> str:
    """An HTTP answer's head, and nothing beyond it."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await read_exactly(sock, 1)
    return data.decode()


async def read_frame(sock: socket.socket) -> tuple[int, bytes]:
    """One unmasked frame: opcode and payload."""
    start = await read_exactly(sock, 2)
    size = start[1]
    assert size < 128, "a server's frame is never masked"
    if size == 126:
        size = int.from_bytes(await read_exactly(sock, 2), "big")
    elif size == 127:
        size = int.from_bytes(await read_exactly(sock, 8), "big")
    return start[0] & 0x0F, await read_exactly(sock, size)


def masked(payload: bytes, opcode: int = 1, *, final: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    """One client frame."""
    first = (0x80 if final else 0) | opcode
    size = len(payload)
    if size < 126:
        header = bytes((first, 0x80 | size))
    elif size < 65536:
        header = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return header + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def upgrade_head(path: str = "/socket/websocket", **extra: str) -> Head:
    """A parsed handshake."""
    headers = {
        "host": "example.org",
        "upgrade": "websocket",
        "connection": "keep-alive, Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    } | {name.replace("_", "-"): value for name, value in extra.items()}
    return Head("GET", path, (), tuple(headers.items()), "192.0.2.1:5", b"")


class Recorder:
    """A handler, and the admission that makes it, that remembers what happens to it."""

    def __init__(self, *, echo: bool = False, fail_on: str | None = None) -> None:
        self.messages: list[str | bytes] = []
        self.events: list[str] = []
        self.echo = echo
        self.fail_on = fail_on
        self.socket: Socket | None = None

    def handler(self, socket: Socket) -> Recorder:
        self.socket = socket
        return self

    def missed(self) -> None:
        self.events.append("missed")

    def message(self, data: str | bytes) -> None:
        self.messages.append(data)
        if data == self.fail_on:
            raise ZeroDivisionError
        if self.echo and self.socket is not None:
            self.socket.send(data.encode() if isinstance(data, str) else data)

    def drain(self) -> None:
        self.events.append("drain")
        if self.socket is not None:
            self.socket.send(b"goodbye")

    def closed(self) -> None:
        self.events.append("closed")


class Served:
    """One accepted WebSocket over a socket pair, and the client's end of it."""

    def __init__(self, sockets: WebSockets, recorder: Recorder, client: socket.socket, stream: SocketStream) -> None:
        self.sockets = sockets
        self.recorder = recorder
        self.client = client
        self.stream = stream

    @property
    def socket(self) -> Socket:
        assert self.recorder.socket is not None
        return self.recorder.socket


@asynccontextmanager
async def served(
    recorder: Recorder | None = None,
    *,
    head: Head | None = None,
    max_frame_bytes: int = 100_000,
    outbox_bytes: int = 100_000,
    send_buffer: int | None = None,
) -> AsyncIterator[Served]:
    """A WebSocket whose handshake is done and read."""
    recorder = recorder or Recorder()
    with socket_pair(send_buffer=send_buffer) as (ours, theirs):
        async with trio.open_nursery() as nursery:
            drains = Drains()
            sockets = WebSockets(max_frame_bytes=max_frame_bytes)
            await nursery.start(drains.run)
            await nursery.start(sockets.run)
            stream = SocketStream(ours, Outbox(ours, outbox_bytes, drains.wake))
            await sockets.accept(stream, head or upgrade_head(), recorder)
            answer = await read_head_text(theirs)
            assert answer.startswith("HTTP/1.1 101 ")
            yield Served(sockets, recorder, theirs, stream)
            nursery.cancel_scope.cancel()
