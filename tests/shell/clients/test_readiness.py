"""Who can read is woken in parts, in the order of coming, and everybody else has turns in between."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support import run
from walstream.shell.clients.readiness import EACH_TURN, TURN_SECONDS, Readiness


class Work:
    """Sockets whose readers each take a part of a turn; ``seen`` is how much was done whenever others had theirs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns_for_each = 0.01
        self.readiness = Readiness(lambda: self.now)
        self.done: list[int] = []
        self.seen: list[int] = []

    async def read(self, number: int, sock: socket.socket) -> None:
        await self.readiness.wait_readable(sock)
        assert sock.recv(10) == b"x"
        self.now += TURN_SECONDS * self.turns_for_each
        self.done.append(number)

    async def live(self) -> None:
        while True:
            self.seen.append(len(self.done))
            await trio.lowlevel.checkpoint()

    def most(self, first: int) -> int:
        """How much was done between two turns of others, of what was done after the first ones."""
        seen = [count for count in self.seen if count >= first]
        return max(after - before for before, after in itertools.pairwise(seen))


@asynccontextmanager
async def running(readiness: Readiness) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(readiness.run)
        yield nursery
        nursery.cancel_scope.cancel()


def pairs(stack: ExitStack, count: int) -> list[tuple[socket.socket, socket.socket]]:
    made = [socket.socketpair() for _ in range(count)]
    for pair in made:
        for sock in pair:
            stack.enter_context(sock)
            sock.setblocking(False)
    return made


def test_others_have_their_turn_while_many_can_read() -> None:
    async def main() -> None:
        work = Work()
        with ExitStack() as stack:
            both = pairs(stack, 400)
            async with running(work.readiness) as nursery:
                for number, (ours, _) in enumerate(both):
                    nursery.start_soon(work.read, number, ours)
                await trio.testing.wait_all_tasks_blocked()
                for _, theirs in both:
                    theirs.send(b"x")
                nursery.start_soon(work.live)
                while len(work.done) < 400:
                    await trio.lowlevel.checkpoint()
                    work.turns_for_each = 0.01 if len(work.done) < 200 else 2
        # trio runs what is ready in no order, so two turns may come between two looks.
        assert EACH_TURN <= work.most(0) <= 2 * EACH_TURN
        assert work.most(300) <= 2, "they take long"
        assert sorted(work.done) == list(range(400))
        assert max(abs(place - number) for place, number in enumerate(work.done)) <= EACH_TURN, (
            "who came first is first"
        )

    run(main)


def test_a_socket_is_waited_for_again_and_again() -> None:
    async def main() -> None:
        readiness = Readiness()
        with ExitStack() as stack:
            ((ours, theirs),) = pairs(stack, 1)
            async with running(readiness):
                for _ in range(3):
                    with trio.move_on_after(0) as scope:
                        await readiness.wait_readable(ours)
                    assert scope.cancelled_caught
                    theirs.send(b"x")
                    await readiness.wait_readable(ours)
                    assert ours.recv(10) == b"x"
                theirs.close()
                await readiness.wait_readable(ours)
                assert ours.recv(10) == b""

    run(main)


def test_who_waits_for_a_socket_that_is_closed_is_told() -> None:
    async def main() -> None:
        readiness = Readiness()
        with ExitStack() as stack:
            ((ours, _), (other, theirs)) = pairs(stack, 2)

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await readiness.wait_readable(ours)

            async with running(readiness):
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    with pytest.raises(trio.BusyResourceError):
                        await readiness.wait_readable(ours)
                    readiness.notify_closing(ours)
                    number = ours.fileno()
                    ours.close()
                # The number is somebody else's now.
                with socket.socket(fileno=other.detach()) as kept, kept.dup() as again:
                    assert again.fileno() == number
                    theirs.send(b"x")
                    await readiness.wait_readable(again)

    run(main)


def test_without_it_and_after_it_trio_does_the_same() -> None:
    async def main() -> None:
        readiness = Readiness()
        with ExitStack() as stack:
            ((ours, theirs),) = pairs(stack, 1)
            woken: list[str] = []

            async def wait(name: str) -> None:
                await readiness.wait_readable(ours)
                woken.append(name)

            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait, "before")
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(b"x")
            ours.recv(10)
            async with trio.open_nursery() as waiting:
                async with running(readiness):
                    waiting.start_soon(wait, "after")
                    await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert woken == ["before", "after"], "whoever waited finds out by itself"
                waiting.start_soon(wait, "trio's")
                await trio.testing.wait_all_tasks_blocked()
                assert len(woken) == 2
                theirs.send(b"x")

    run(main)
