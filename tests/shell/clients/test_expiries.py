"""Deadlines of many owners under a clock that leaps, and under one that is set."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tests.support import run
from walstream.shell.clients.expiries import LOOK_SECONDS, SLICE, STALE_MIN, Expiries


class Owner:
    def __init__(self, clock: Callable[[], float], then: Callable[[], None] | None = None) -> None:
        self.clock = clock
        self.then = then
        self.ticks: list[float] = []

    def tick(self, now: float) -> None:
        assert now == self.clock()
        self.ticks.append(now)
        if self.then is not None:
            self.then()


def test_everybody_is_ticked_at_their_deadline_and_no_other_time() -> None:
    async def main() -> None:
        expiries = Expiries(trio.current_time)
        start = trio.current_time()
        owners = [Owner(trio.current_time) for _ in range(3 * SLICE)]
        async with trio.open_nursery() as nursery:
            await nursery.start(expiries.run)
            for index, owner in enumerate(owners):
                expiries.watch(owner, start + 1000 + index % 3)
            expiries.watch(owners[0], start + 5)
            expiries.watch(owners[1], None)
            await trio.sleep(2000)
            assert [round(owner.ticks[0] - start) for owner in owners[2:5]] == [1002, 1000, 1001]
            assert round(owners[0].ticks[0] - start) == 5
            assert owners[1].ticks == []
            assert all(len(owner.ticks) == 1 for owner in owners[2:])
            assert len(expiries) == 0
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_an_owner_may_set_its_next_deadline_while_it_is_ticked() -> None:
    async def main() -> None:
        expiries = Expiries(trio.current_time)
        start = trio.current_time()
        owner = Owner(trio.current_time)
        owner.then = lambda: expiries.watch(owner, trio.current_time() + 10) if len(owner.ticks) < 3 else None
        expiries.watch(owner, start)
        async with trio.open_nursery() as nursery:
            await nursery.start(expiries.run)
            await trio.sleep(100)
            assert [round(tick - start) for tick in owner.ticks] == [0, 10, 20]
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_a_clock_that_is_set_forward_is_noticed() -> None:
    async def main() -> None:
        ahead = 0.0

        def clock() -> float:
            return trio.current_time() + ahead

        expiries = Expiries(clock)
        owner = Owner(clock)
        expiries.watch(owner, clock() + 3600)
        async with trio.open_nursery() as nursery:
            await nursery.start(expiries.run)
            await trio.sleep(1)
            ahead = 3600.0
            await trio.sleep(LOOK_SECONDS + 1)
            assert len(owner.ticks) == 1
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_what_is_no_longer_watched_takes_no_room() -> None:
    async def main() -> None:
        expiries = Expiries(trio.current_time)
        kept = Owner(trio.current_time)
        expiries.watch(kept, 5.0)
        for _ in range(5 * STALE_MIN):
            gone = Owner(trio.current_time)
            expiries.watch(gone, 1e9)
            expiries.watch(gone, None)
        assert len(expiries) == 1
        assert len(expiries._heap) <= STALE_MIN + 3

    run(main)
