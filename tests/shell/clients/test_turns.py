"""What is ready at once is done in parts, in the order of coming, and everybody else has turns in between."""

from __future__ import annotations

import trio
import trio.testing

from tests.support import run
from walstream.shell.clients.turns import EACH_TURN, TURN_SECONDS, Turns


class Work:
    """Tasks that each take a part of a turn; ``live`` notes how much was done whenever it has a turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = Turns(lambda: self.now)
        self.done: list[int] = []
        self.seen: list[int] = []

    async def handle(self, number: int, ready: trio.Event) -> None:
        await ready.wait()
        if self.turns.is_late:
            await self.turns.wait()
        self.now += TURN_SECONDS / 4
        self.done.append(number)

    async def live(self) -> None:
        while True:
            self.seen.append(len(self.done))
            await trio.lowlevel.checkpoint()


def test_others_have_their_turn_while_many_are_ready() -> None:
    async def main() -> None:
        work, ready = Work(), trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(work.turns.run)
            for number in range(500):
                nursery.start_soon(work.handle, number, ready)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(work.live)
            ready.set()
            while len(work.done) < 500:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        steps = [after - before for before, after in zip(work.seen, work.seen[1:], strict=False)]
        # trio runs what is ready in no order, so two turns may come between two looks.
        assert max(steps) <= 2 * EACH_TURN
        assert sorted(work.done) == list(range(500))

    run(main)


def test_nobody_is_late_without_it_and_nobody_stays_behind() -> None:
    async def main() -> None:
        work, ready = Work(), trio.Event()
        work.now = 1e9
        assert not work.turns.is_late
        async with trio.open_nursery() as handlers, trio.open_nursery() as nursery:
            await nursery.start(work.turns.run)
            for number in range(50):
                handlers.start_soon(work.handle, number, ready)
            ready.set()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert len(work.done) == 50
        work.now += 1e9
        assert not work.turns.is_late

    run(main)
