"""What the WebSocket shell relies on in trio-websocket beyond its documentation: a new version must pass this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import trio
import trio.testing
import trio_websocket

from tests.shell.edge_support import UPGRADE, masked
from tests.support import run

HEAD = f"GET / HTTP/1.1\r\n{UPGRADE}\r\n".encode()


class Script(trio.abc.Stream):
    """Plays chunks to the library's reader and notes, at each wish for more, what it had queued by then."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.sent: list[bytes] = []
        self.reads = 0
        self.closed = 0
        self.reason_when_closed: int | None = None
        self.connection: trio_websocket.WebSocketConnection | None = None
        self.accepted = trio.Event()
        self.expected: list[int] = []
        self.delivered: list[list[str | bytes]] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if self.reads > 1:
            await self.accepted.wait()
            assert self.connection is not None
            if self.expected:
                count = self.expected.pop(0)
                # Would wait for ever, were a message of the last chunk not queued by now.
                self.delivered.append([await self.connection.get_message() for _ in range(count)])
        if self.closed:
            raise trio.ClosedResourceError
        return self.chunks.pop(0) if self.chunks else b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed += 1
        if self.connection is not None and self.connection.closed is not None and self.reason_when_closed is None:
            self.reason_when_closed = int(self.connection.closed.code)


class Nursery:
    """All of a nursery that the library may use."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.started: list[Callable[[], Awaitable[None]]] = []
        self._nursery = nursery

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        self.started.append(function)
        self._nursery.start_soon(function)


def play(script: Script, *, max_message_size: int = 1000) -> Script:
    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                stand_in = Nursery(nursery)
                request = await trio_websocket.wrap_server_stream(
                    cast(trio.Nursery, stand_in),
                    script,
                    message_queue_size=100,
                    max_message_size=max_message_size,
                    receive_buffer_size=100,
                )
                script.connection = await request.accept()
                script.accepted.set()
            assert len(stand_in.started) == 1

    run(main, autojump=True)
    return script


def test_the_reader_is_the_only_task_and_ends_by_itself() -> None:
    assert play(Script([HEAD])).sent[0].startswith(b"HTTP/1.1 101 ")


def test_all_messages_of_a_read_are_queued_before_the_next_read() -> None:
    script = Script([HEAD, masked(b"a") + masked(b"b") + masked(b"c", final=False), masked(b"d", 0) + masked(b"e", 2)])
    script.expected = [0, 2, 2]
    assert play(script).delivered == [[], ["a", "b"], ["cd", b"e"]]


def test_each_frame_of_the_library_is_one_send() -> None:
    script = play(Script([HEAD, masked(b"p", 9) + masked(b"q", 9) + masked(b"\x03\xe8", 8)]))
    assert script.sent[1:] == [b"\x8a\x01p", b"\x8a\x01q", b"\x88\x02\x03\xe8"]
    assert script.closed


def test_the_reason_for_malformed_input_is_known_when_the_stream_is_closed_and_not_sent() -> None:
    script = play(Script([HEAD, b"\xff\xff\xff"]))
    assert script.reason_when_closed == 1002
    assert not any(data[0] == 0x88 for data in script.sent)


def test_a_message_that_is_too_large_is_answered_by_the_library() -> None:
    script = play(Script([HEAD, masked(b"x" * 11)]), max_message_size=10)
    assert script.sent[1][:4] == b"\x88" + script.sent[1][1:2] + (1009).to_bytes(2, "big")
