"""The pinger: who is pinged, who is closed, and who has waited long enough for an answer."""

from __future__ import annotations

import pytest
import trio

from tests.shell.edge_support import Served, masked, read_all, read_frame, read_until_closed, served
from tests.support import run
from walstream.protocol.websocket import PING, frame
from walstream.shell.clients.pinger import CLOSE_SECONDS, tend_all
from walstream.shell.clients.sockets import REASON_IDLE


async def tending(ws: Served, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()
    await tend_all(ws.sockets, ping_seconds=25, idle_seconds=60)


def test_a_quiet_client_is_pinged_every_ping_seconds_and_closed_when_idle() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            begun = trio.current_time()
            pings = [await read_frame(ws.client) for _ in range(2)]
            assert pings == [(PING, b"")] * 2
            assert trio.current_time() - begun == pytest.approx(50, abs=2)
            assert await read_frame(ws.client) == (8, (1000).to_bytes(2, "big") + REASON_IDLE.encode())
            assert trio.current_time() - begun == pytest.approx(60, abs=2)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_client_that_talks_is_neither_pinged_nor_closed() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            for _ in range(10):
                await trio.sleep(20)
                ws.client.send(masked(b"heartbeat"))
            await trio.sleep(1)
            assert read_all(ws.client) == b""
            assert ws.socket.is_open
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_client_that_does_not_answer_the_librarys_close_is_cut_off() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            await trio.sleep(1)
            begun = trio.current_time()
            ws.socket.part(b"\x88\x02\x03\xf1")
            assert await read_frame(ws.client) == (8, (1009).to_bytes(2, "big"))
            assert not ws.socket.is_open
            await read_until_closed(ws.client)
            assert trio.current_time() - begun == pytest.approx(CLOSE_SECONDS, abs=2)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_an_answered_ping_keeps_the_connection() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            for _ in range(5):
                assert await read_frame(ws.client) == (PING, b"")
                ws.client.send(masked(b"", 10))
            assert ws.socket.is_open
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_goodbye_that_nobody_answers_ends_by_itself() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            begun = trio.current_time()
            ws.socket.close(1012)
            await ws.sockets.wait_empty()
            assert trio.current_time() - begun == pytest.approx(CLOSE_SECONDS, abs=2)
            assert ws.recorder.events == ["closed"]
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_dead_writer_ends_the_reader() -> None:
    async def main() -> None:
        async with served() as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            ws.socket.outbox.die()
            await ws.sockets.wait_empty()
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_ping_overtakes_what_a_slow_client_has_not_read() -> None:
    async def main() -> None:
        async with served(send_buffer=4096) as ws, trio.open_nursery() as nursery:
            await nursery.start(tending, ws)
            while not ws.socket.outbox.parked:
                ws.socket.send(b"x" * 1000)
            for _ in range(20):
                ws.socket.send(b"waiting")
            await trio.sleep(30)
            ws.socket.close(1000)
            received = await read_until_closed(ws.client)
            assert received.index(frame(b"", PING)) < received.index(b"waiting")
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
