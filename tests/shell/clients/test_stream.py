"""The stream around a socket: one writer for everybody, replay, backpressure, and how it ends."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from tests.shell.edge_support import read_all, read_exactly, read_until_closed, socket_pair
from tests.support import run
from walstream.shell.clients.stream import SEND_BYTES, SocketStream
from walstream.shell.delivery.outbox import Drains, Outbox, State

BLOCKED = trio.testing.wait_all_tasks_blocked


async def start_drains(nursery: trio.Nursery) -> Drains:
    drains = Drains()
    await nursery.start(drains.run)
    return drains


def test_it_keeps_what_trio_promises_of_streams() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            drains = await start_drains(nursery)

            async def pair() -> tuple[SocketStream, SocketStream]:
                both = []
                for sock in socket.socketpair():
                    sock.setblocking(False)
                    both.append(SocketStream(sock, Outbox(sock, 1 << 30, drains.wake)))
                return both[0], both[1]

            first, second = await pair()
            async with first, second:
                await first.send_all(b"there")
                assert await second.receive_some(3) == b"the"
                assert await second.receive_some(10) == b"re"
                await second.send_all(b"and back")
                assert await first.receive_some() == b"and back"
                await first.send_eof()
                assert await second.receive_some() == b""
                await second.send_all(b"half closed")
                assert await first.receive_some() == b"half closed"
            with pytest.raises(trio.ClosedResourceError):
                await first.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await first.send_all(b"x")
            await first.aclose()
            nursery.cancel_scope.cancel()

    run(main)


def test_bytes_put_back_come_first() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            theirs.send(b"third")
            stream.unread(b"second")
            stream.unread(b"first ")
            assert await stream.receive_some(4) == b"firs"
            assert await stream.receive_some() == b"t second"
            assert await stream.receive_some() == b"third"

    run(main)


def test_what_is_sent_goes_behind_what_the_outbox_holds() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            stream.outbox.push(b"ready-made ")
            await stream.send_all(b"control")
            stream.outbox.push_urgent(b"!")
            stream.outbox.flush()
            assert read_all(theirs) == b"ready-made control!"

    run(main)


def test_sending_waits_for_a_reader_who_is_behind_and_goes_on_when_he_reads() -> None:
    async def main() -> None:
        with socket_pair(send_buffer=4096) as (ours, theirs):
            async with trio.open_nursery() as nursery:
                drains = await start_drains(nursery)
                stream = SocketStream(ours, Outbox(ours, 1_000_000, drains.wake))
                done = trio.Event()

                async def send() -> None:
                    await stream.send_all(b"x" * (SEND_BYTES + 20_000))
                    done.set()

                nursery.start_soon(send)
                await BLOCKED()
                assert not done.is_set()
                await read_exactly(theirs, 40_000)
                await done.wait()
                assert stream.outbox.queued_bytes > 0  # "behind by less" is enough
                nursery.cancel_scope.cancel()

    run(main)


def test_large_bodies_arrive_although_they_exceed_the_outbox() -> None:
    async def main() -> None:
        with socket_pair(send_buffer=4096) as (ours, theirs):
            async with trio.open_nursery() as nursery:
                drains = await start_drains(nursery)
                stream = SocketStream(ours, Outbox(ours, 50_000, drains.wake))

                async def send() -> None:
                    for letter in b"abc":
                        await stream.send_all(bytes([letter]) * 60_000)

                nursery.start_soon(send)
                assert await read_exactly(theirs, 180_000) == b"a" * 60_000 + b"b" * 60_000 + b"c" * 60_000
                assert stream.outbox.state is State.OPEN
                nursery.cancel_scope.cancel()

    run(main)


def test_a_stalled_reader_is_given_up_after_send_seconds() -> None:
    async def main() -> None:
        with socket_pair(send_buffer=4096) as (ours, theirs):
            async with trio.open_nursery() as nursery:
                drains = await start_drains(nursery)
                stream = SocketStream(ours, Outbox(ours, 1_000_000, drains.wake))
                stream.send_seconds = 30
                begun = trio.current_time()
                with pytest.raises(trio.BrokenResourceError), trio.CancelScope(shield=True):
                    await stream.send_all(b"x" * 500_000)
                assert trio.current_time() - begun == pytest.approx(30)
                assert stream.closed
                del theirs
                nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_cancelled_send_has_sent_all_or_nothing() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.send_all(b"never")
            assert scope.cancelled_caught
            assert read_all(theirs) == b""

    run(main)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_closing_wakes_the_reader(end: str) -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stream.receive_some()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await BLOCKED()
                getattr(stream, end)()
            assert stream.closed
            assert stream.outbox.state is State.DEAD
            assert await read_until_closed(theirs) == b""

    run(main)


def test_lingering_delivers_the_last_words_and_outlasts_unread_input() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            theirs.send(b"what nobody asked for")
            await stream.send_all(b"refused")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.linger, 2.0)
                assert await read_until_closed(theirs) == b"refused"
                assert not stream.closed
                theirs.shutdown(1)
            assert stream.closed

    run(main)


def test_lingering_ends_with_its_deadline() -> None:
    async def main() -> float:
        with socket_pair() as (ours, _):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            begun = trio.current_time()
            await stream.linger(2.0)
            assert stream.closed
            return trio.current_time() - begun

    assert run(main, autojump=True) == pytest.approx(2)


def test_inbound_bytes_are_dated() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            begun = stream.heard_at
            await trio.sleep(7)
            assert stream.heard_at == begun
            theirs.send(b"x")
            await stream.receive_some()
            assert stream.heard_at == pytest.approx(begun + 7)

    run(main, autojump=True)
