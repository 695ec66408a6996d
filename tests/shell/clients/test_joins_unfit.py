"""Filters that fitted when their channels were joined, over tables that were altered since."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog.testing
import trio
from structlog.typing import EventDict
from trio.testing import wait_all_tasks_blocked

from tests.predicate.rows import COLUMNS
from tests.shell.joins_support import Owner, Rig
from tests.support import run
from walstream.lsn import Lsn
from walstream.model import Change, Operation, Relation, Transaction
from walstream.shell.clients.joins import RETRY_SECONDS, UNFIT_SECONDS
from walstream.telemetry.log import FILTER_UNFIT

ALL = b'{"event":"*","schema":"public","table":"things"}'
BY_TEXT = b'{"event":"*","schema":"public","table":"things","filter":"t=eq.a"}'
EVERYWHERE = b'{"event":"*","schema":"public","table":"*","filter":"t=eq.a"}'
WITHOUT_TEXT = tuple(column for column in COLUMNS if column.name != "t")


def scene(main: Callable[[Rig], Awaitable[None]]) -> list[EventDict]:
    """Run ``main`` while joins are answered. Returns what was logged."""

    async def whole() -> None:
        rig = Rig()
        with rig.world.instead_of_postgresql():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.joins.run)
                await main(rig)
                nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs() as logs:
        run(whole, autojump=True)
    return [line for line in logs if line["event"] == FILTER_UNFIT]


def alter(rig: Rig, *, in_database: bool = True) -> None:
    """The column ``t`` goes, and a row comes out of the stream that has it no more."""
    if in_database:
        info = rig.world.tables["public", "things"]
        rig.world.tables["public", "things"] = msgspec.structs.replace(info, columns=WITHOUT_TEXT)
    altered = Relation("public", "things", WITHOUT_TEXT, ("n",))
    rig.commit += 10
    rig.world.xid += 1
    change = Change(altered, Operation.INSERT, (b"1", b"true"), None, 0, 0)
    transaction = Transaction(rig.world.xid - 1, Lsn(rig.commit), 0, (change,), size=1)
    rig.fanout.route(rig.ring.append(transaction, 0), transaction, spilled=False)


async def joined(rig: Rig, *items: bytes, topic: str = "t") -> tuple[Owner, int]:
    owner = Owner(rig)
    serial = rig.ask(owner, *items, topic=topic)
    await wait_all_tasks_blocked()
    assert owner.accepted(serial).status == "ok"
    return owner, serial


def test_who_has_a_filter_that_no_longer_fits_is_told_once() -> None:
    async def main(rig: Rig) -> None:
        first, serial = await joined(rig, ALL, BY_TEXT)
        second, _ = await joined(rig, ALL, BY_TEXT, topic="t")
        other, _ = await joined(rig, ALL)
        await rig.commit_row()
        await trio.sleep(UNFIT_SECONDS * 3)
        assert first.told == {}
        alter(rig)
        await trio.sleep(UNFIT_SECONDS * 5)
        for owner in (first, second):
            ((status, message),) = (told for texts in owner.told.values() for told in texts)
            assert (status, "invalid column for filter t" in message) == ("error", True)
        assert other.told == {}
        await rig.fanout.flush()
        assert first.frames[-1].ids == first.accepted(serial).ids[:1], "the channel's other items go on"

    (line,) = scene(main)
    assert line["channels"] == 2
    assert "t" in line["error"]


def test_a_wildcards_filter_has_to_fit_every_table() -> None:
    async def main(rig: Rig) -> None:
        owner, serial = await joined(rig, EVERYWHERE)
        alter(rig)
        await trio.sleep(UNFIT_SECONDS * 2)
        assert [status for status, _ in owner.told[serial]] == ["error"]

    assert len(scene(main)) == 1


def test_a_stream_that_lags_behind_alarms_nobody() -> None:
    """The column was added before the join, and the stream has not got there."""

    async def main(rig: Rig) -> None:
        owner, _ = await joined(rig, BY_TEXT)
        alter(rig, in_database=False)
        await trio.sleep(UNFIT_SECONDS * 3)
        assert owner.told == {}

    assert scene(main) == []


def test_it_is_told_once_the_database_is_back() -> None:
    async def main(rig: Rig) -> None:
        owner, serial = await joined(rig, BY_TEXT)
        alter(rig)
        rig.world.is_away = True
        await trio.sleep(UNFIT_SECONDS * 5)
        assert owner.told == {}
        rig.world.is_away = False
        await trio.sleep(UNFIT_SECONDS + RETRY_SECONDS)
        assert len(owner.told[serial]) == 1

    assert len(scene(main)) == 1


def test_who_has_left_costs_nothing_and_is_told_nothing() -> None:
    async def main(rig: Rig) -> None:
        owner, serial = await joined(rig, BY_TEXT)
        staying, _ = await joined(rig, ALL)
        alter(rig)
        owner.leave(serial)
        trips = rig.world.trips
        await trio.sleep(UNFIT_SECONDS * 2)
        assert rig.world.trips == trips
        assert (owner.told, staying.told) == ({}, {})

    assert scene(main) == []


def test_who_leaves_while_the_database_is_away_is_asked_for_no_more() -> None:
    async def main(rig: Rig) -> None:
        owner, serial = await joined(rig, BY_TEXT)
        alter(rig)
        rig.world.is_away = True
        await trio.sleep(UNFIT_SECONDS * 1.5)
        trips = rig.world.trips
        owner.leave(serial)
        await trio.sleep(UNFIT_SECONDS * 2)
        assert rig.world.trips == trips

    assert scene(main) == []


def test_who_leaves_while_the_database_is_asked_is_told_nothing() -> None:
    async def main(rig: Rig) -> None:
        first, serial = await joined(rig, BY_TEXT)
        second, _ = await joined(rig, BY_TEXT)
        alter(rig)
        rig.world.on_answer = lambda: first.leave(serial) if serial in first.present else None
        await trio.sleep(UNFIT_SECONDS * 2)
        assert first.told == {}
        assert second.told != {}

    scene(main)
