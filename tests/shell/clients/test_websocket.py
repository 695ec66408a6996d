"""WebSockets over socket pairs: messages, handshakes, every way to end, and the count that replaces a second task."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
import trio
import trio.testing
import trio_websocket
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.shell.edge_support import (
    KEY,
    Recorder,
    masked,
    read_frame,
    read_head_text,
    read_until_closed,
    served,
    socket_pair,
    upgrade_head,
)
from tests.support import freed_at_once, run
from walstream.errors import ProtocolError
from walstream.protocol.websocket import frame
from walstream.shell.clients.sockets import SERVICE_RESTART, TRY_AGAIN_LATER, Head, Socket, close_frame
from walstream.shell.clients.stream import SocketStream
from walstream.shell.clients.websocket import WebSockets, _Feed, check_handshake
from walstream.shell.delivery.outbox import Drains, Outbox, State, broadcast

BLOCKED = trio.testing.wait_all_tasks_blocked


def closing(code: int) -> bytes:
    return code.to_bytes(2, "big")


# -- messages


def test_messages_reach_the_handler_in_order_whole_and_of_their_kind() -> None:
    async def main() -> list[str | bytes]:
        async with served() as ws:
            data = masked(b"one") + masked(b"tw", final=False) + masked(b"", 9) + masked(b"o", 0) + masked(b"3", 2)
            for index in range(len(data)):
                ws.client.send(data[index : index + 1])
                await BLOCKED()
            return ws.recorder.messages

    assert run(main) == ["one", "two", b"3"]


def test_many_messages_in_one_read_are_all_handled_before_the_next_wait() -> None:
    async def main() -> int:
        async with served() as ws:
            ws.client.send(masked(b"") * 2700)
            await BLOCKED()
            ws.client.send(masked(b"") * 2700)
            await BLOCKED()
            return len(ws.recorder.messages)

    assert run(main) == 5400


def test_answers_to_one_read_leave_in_one_write() -> None:
    async def main() -> bytes:
        async with served(Recorder(echo=True)) as ws:
            ws.client.send(masked(b"a") + masked(b"b") + masked(b"c"))
            await trio.lowlevel.wait_readable(ws.client)
            return ws.client.recv(1000)

    assert run(main) == frame(b"a") + frame(b"b") + frame(b"c")


def test_a_ping_is_answered_between_ready_made_frames() -> None:
    async def main() -> None:
        async with served() as ws:
            broadcast([ws.socket.outbox], frame(b"ready-made"))
            ws.client.send(masked(b"hello", 9))
            assert await read_frame(ws.client) == (1, b"ready-made")
            assert await read_frame(ws.client) == (10, b"hello")

    run(main)


def test_binary_and_text_are_sent_as_such() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.socket.send(b"text")
            ws.socket.send(b"\0\1", binary=True)
            assert await read_frame(ws.client) == (1, b"text")
            assert await read_frame(ws.client) == (2, b"\0\1")

    run(main)


def test_a_socket_that_has_ended_leaves_nothing_to_the_collector() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.send(masked(b"hello"))
            await BLOCKED()
            ws.client.send(masked(b"", opcode=8))
            await ws.sockets.wait_empty()

    with freed_at_once(_Feed, trio_websocket.WebSocketConnection, Recorder):
        run(main)


def test_a_handshake_that_is_not_answered_leaves_nothing_to_the_collector() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(sockets.run)
                theirs.close()
                stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
                await sockets.accept(stream, upgrade_head(), Recorder())
                await sockets.wait_empty()
                nursery.cancel_scope.cancel()

    with freed_at_once(_Feed, trio_websocket.WebSocketConnection, Recorder):
        run(main)


# -- the handshake


def test_a_client_that_asks_for_subprotocols_gets_its_first_one() -> None:
    async def main(asked: str) -> str:
        with socket_pair() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(sockets.run)
                stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
                await sockets.accept(stream, upgrade_head(sec_websocket_protocol=asked), Recorder())
                answer = await read_head_text(theirs)
                nursery.cancel_scope.cancel()
            return answer

    assert "sec-websocket-protocol: undefined\r\n" in run(main, "undefined").lower()
    assert "sec-websocket-protocol: phoenix\r\n" in run(main, "phoenix, base64url.bearer.phx.abc").lower()
    assert "sec-websocket-protocol" not in run(main, "in valid\u00e9").lower()


def test_compression_is_not_agreed_to() -> None:
    async def main() -> None:
        head = upgrade_head(sec_websocket_extensions="permessage-deflate; client_max_window_bits")
        with socket_pair() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(sockets.run)
                await sockets.accept(SocketStream(ours, Outbox(ours, 1000, lambda outbox: None)), head, Recorder())
                answer = await read_head_text(theirs)
                assert "extensions" not in answer.lower()
                assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer  # RFC 6455, 4.2.2: the answer to this key
                nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    "head",
    [
        upgrade_head(sec_websocket_version="8"),
        upgrade_head(sec_websocket_key="short"),
        upgrade_head(sec_websocket_key="!" * 24),
        upgrade_head(upgrade="h2c"),
        upgrade_head(connection="keep-alive"),
        Head("GET", "/", (), (), "", b""),
    ],
)
def test_a_handshake_that_the_library_would_refuse_is_refused_before_it(head: Head) -> None:
    with pytest.raises(ProtocolError):
        check_handshake(head)


def test_the_handshake_in_the_books_is_accepted() -> None:
    check_handshake(upgrade_head(sec_websocket_key=KEY, upgrade="WebSocket", connection="UPGRADE"))


def test_frames_sent_together_with_the_handshake_are_not_lost() -> None:
    async def main() -> list[str | bytes]:
        recorder = Recorder()
        with socket_pair() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(sockets.run)
                stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
                stream.unread(masked(b"early"))
                theirs.send(masked(b"next"))
                await sockets.accept(stream, upgrade_head(), recorder)
                await BLOCKED()
                nursery.cancel_scope.cancel()
        return recorder.messages

    assert run(main) == ["early", "next"]


def test_a_cancelled_handshake_leaves_nothing_behind() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(sockets.run)
                recorder = Recorder()
                with trio.CancelScope() as scope:
                    scope.cancel()
                    stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
                    await sockets.accept(stream, upgrade_head(), recorder)
                assert stream.closed
                assert len(sockets) == 0
                assert recorder.events == ["missed"]
                await BLOCKED()
                assert await read_until_closed(theirs) == b""
                nursery.cancel_scope.cancel()

    run(main)


# -- how it ends


def test_a_client_that_says_goodbye_is_answered_and_its_handler_told_once() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.send(masked(closing(1000), 8))
            assert await read_frame(ws.client) == (8, closing(1000))
            assert await read_until_closed(ws.client) == b""
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]

    run(main)


def test_a_client_that_just_vanishes_is_noticed() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.close()
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]
            assert ws.stream.closed

    run(main)


def test_a_half_open_client_ends_like_one_that_vanished() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.send(masked(b"last") + b"\x81")
            ws.client.shutdown(1)
            await ws.sockets.wait_empty()
            assert ws.recorder.messages == ["last"]
            assert ws.recorder.events == ["closed"]

    run(main)


def test_close_sends_what_waits_then_the_code_and_waits_for_the_answer() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.socket.send(b"last words")
            ws.socket.close(SERVICE_RESTART, "Server requested disconnect")
            ws.socket.send(b"too late")
            ws.socket.close(1000, "a second close is none")
            assert await read_frame(ws.client) == (1, b"last words")
            assert await read_frame(ws.client) == (8, closing(1012) + b"Server requested disconnect")
            ws.client.send(masked(b"ignored") + masked(b"", 9))
            await BLOCKED()
            assert (ws.recorder.messages, ws.recorder.events) == ([], [])
            ws.client.send(masked(closing(1012), 8))
            assert await read_until_closed(ws.client) == b""
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]

    run(main)


def test_abort_ends_it_at_once() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.socket.abort()
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]
            assert await read_until_closed(ws.client) == b""

    run(main)


def test_a_message_above_the_limit_is_answered_with_1009() -> None:
    async def main() -> None:
        async with served(max_frame_bytes=1000) as ws:
            ws.client.send(masked(b"x" * 1001))
            opcode, payload = await read_frame(ws.client)
            assert (opcode, payload[:2]) == (8, closing(1009))
            ws.client.close()
            await ws.sockets.wait_empty()
            assert (ws.recorder.messages, ws.recorder.events) == ([], ["closed"])

    run(main)


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (b"\xff\xff garbage", 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
        (b"\x81\x05hello", 1002),  # not masked
        (masked(b"\xff\xfe"), 1007),  # no UTF-8
        (masked(b"x", 0), 1002),  # continues nothing
    ],
)
def test_garbage_after_the_upgrade_is_answered_with_a_typed_close(garbage: bytes, code: int) -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.send(garbage)
            opcode, payload = await read_frame(ws.client)
            assert (opcode, payload[:2]) == (8, closing(code))
            ws.client.close()
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]

    run(main)


def test_a_message_of_endless_empty_fragments_is_ended() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.client.setblocking(True)
            ws.client.send(masked(b"", final=False))
            with trio.fail_after(30):
                while True:
                    await trio.to_thread.run_sync(ws.client.send, masked(b"", 0, final=False) * 1000)
                    await BLOCKED()
                    if ws.recorder.events:
                        break
            ws.client.setblocking(False)
            opcode, payload = await read_frame(ws.client)
            assert (opcode, payload[:2]) == (8, closing(1008))

    run(main)


def test_a_client_that_does_not_answer_a_typed_close_is_waited_for_a_little_only() -> None:
    async def main() -> float:
        async with served() as ws:
            begun = trio.current_time()
            ws.client.send(b"\xff\xff")
            await ws.sockets.wait_empty()
            return trio.current_time() - begun

    assert run(main, autojump=True) == pytest.approx(2.0)


def test_a_handler_that_fails_closes_its_own_socket_with_1011() -> None:
    async def main() -> None:
        async with served(Recorder(fail_on="boom")) as ws:
            ws.client.send(masked(b"boom") + masked(b"not handled"))
            assert await read_frame(ws.client) == (8, closing(1011) + b"internal error")
            ws.client.send(masked(closing(1011), 8))
            await ws.sockets.wait_empty()
            assert (ws.recorder.messages, ws.recorder.events) == (["boom"], ["closed"])

    run(main)


def test_a_client_that_pings_without_reading_is_made_to_wait() -> None:
    async def main() -> None:
        async with served(send_buffer=4096, outbox_bytes=1_000_000) as ws:
            ping = masked(b"p" * 125, 9)
            sent = 0
            while True:
                try:
                    sent += ws.client.send(ping * 100)
                except BlockingIOError:
                    await BLOCKED()
                    try:
                        sent += ws.client.send(ping)
                    except BlockingIOError:
                        break
            assert ws.socket.outbox.queued_bytes < 200_000
            assert ws.socket.outbox.state is State.OPEN

    run(main)


def test_a_client_that_does_not_read_is_told_why_it_is_closed_and_nobody_else_notices() -> None:
    async def main() -> None:
        count, frame_bytes = 100, frame(b"x" * 5000)
        with ExitStack() as stack:
            ours, slow = stack.enter_context(socket_pair(send_buffer=4096))
            async with trio.open_nursery() as nursery:
                drains = Drains()
                sockets = WebSockets(max_frame_bytes=1000)
                await nursery.start(drains.run)
                await nursery.start(sockets.run)
                stuck = Recorder()
                await sockets.accept(SocketStream(ours, Outbox(ours, 20_000, drains.wake)), upgrade_head(), stuck)
                others = []
                for _ in range(count - 1):
                    mine, theirs = stack.enter_context(socket_pair())
                    stream = SocketStream(mine, Outbox(mine, 20_000, drains.wake))
                    await sockets.accept(stream, upgrade_head(), Recorder())
                    await read_head_text(theirs)
                    others.append(theirs)
                outboxes = [socket.outbox for socket in sockets]
                assert len(outboxes) == count
                for _ in range(20):
                    broadcast(outboxes, frame_bytes)
                    for client in others:
                        assert await read_frame(client) == (1, b"x" * 5000)
                assert stuck.socket is not None
                assert stuck.socket.close_code == TRY_AGAIN_LATER
                await read_head_text(slow)
                while (received := await read_frame(slow)) == (1, b"x" * 5000):
                    pass
                assert received == (8, closing(1013) + b"too_slow: the client does not read fast enough")
                slow.send(masked(closing(1013), 8))
                await BLOCKED()
                assert stuck.events == ["closed"]
                assert len(sockets) == count - 1
                for client in others:
                    client.close()
                await sockets.wait_empty()
                nursery.cancel_scope.cancel()

    run(main)


def test_what_becomes_of_a_slow_socket_can_be_decided_elsewhere() -> None:
    async def main() -> None:
        slow: list[Socket] = []
        with socket_pair(send_buffer=4096) as (ours, _):
            async with trio.open_nursery() as nursery:
                sockets = WebSockets(max_frame_bytes=1000, on_overflow=slow.append)
                await nursery.start(sockets.run)
                recorder = Recorder()
                stream = SocketStream(ours, Outbox(ours, 5000, lambda outbox: None))
                await sockets.accept(stream, upgrade_head(), recorder)
                while not broadcast([stream.outbox], b"x" * 1000):
                    pass
                assert slow == [recorder.socket]
                assert recorder.socket is not None
                assert recorder.socket.is_open
                nursery.cancel_scope.cancel()

    run(main)


def test_drain_lets_every_handler_speak_first_even_if_one_fails() -> None:
    class Mute(Recorder):
        def drain(self) -> None:
            super().drain()
            raise ZeroDivisionError

    async def main() -> None:
        async with served(Mute()) as ws:
            await ws.sockets.drain(SERVICE_RESTART, "Server requested disconnect")
            assert await read_frame(ws.client) == (1, b"goodbye")
            assert await read_frame(ws.client) == (8, closing(1012) + b"Server requested disconnect")
            ws.client.send(masked(closing(1012), 8))
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["drain", "closed"]

    run(main)


def test_a_close_reason_is_cut_between_characters() -> None:
    cut = close_frame(1012, "é" * 100)
    assert len(cut) == 2 + 2 + 122
    assert cut[4:].decode() == "é" * 61


pieces = st.one_of(
    st.builds(masked, st.binary(max_size=20), st.sampled_from([1, 2, 9, 10])),
    st.builds(masked, st.binary(max_size=20), st.sampled_from([0, 1, 2]), final=st.just(False)),
    st.builds(masked, st.sampled_from([b"", closing(1000), closing(1005), closing(4000) + b"\xff", b"x"]), st.just(8)),
    st.binary(max_size=30),
)


@settings(max_examples=80)
@given(sent=st.lists(pieces, max_size=8), server_closes_after=st.integers(0, 8))
def test_whatever_a_client_sends_it_ends_once_and_alone(sent: list[bytes], server_closes_after: int) -> None:
    async def main() -> None:
        async with served(Recorder(echo=True)) as ws:
            for number, piece in enumerate(sent):
                if number == server_closes_after:
                    ws.socket.close(SERVICE_RESTART)
                with suppress(BrokenPipeError, ConnectionResetError):
                    ws.client.send(piece)
                await BLOCKED()
            ws.client.close()
            await ws.sockets.wait_empty()
            assert ws.recorder.events == ["closed"]
            assert ws.stream.closed

    with capture_logs() as logs:
        run(main, autojump=True)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []
