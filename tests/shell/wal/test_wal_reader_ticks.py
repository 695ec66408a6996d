"""When a tick of the reader ends, when it waits for more, and how much it hands over at once."""

from __future__ import annotations

from unittest import mock

from tests.shell.wal.test_wal_reader import Rig, Wire, message
from walstream.model import CatalogMiss
from walstream.shell.wal import wal_reader
from walstream.shell.wal.wal_reader import BUSY_MESSAGES, BUSY_SECONDS


def test_a_tick_ends_when_it_is_large_enough() -> None:
    wire = Wire(*[message(b"x" * 100_000) for _ in range(9)])
    rig = Rig(wire)
    with mock.patch.object(wal_reader, "TICK_SECONDS", 1e9):
        rig.run()
    assert rig.base.flushed == 3
    assert rig.base.gulps == [3, 3, 3], "no more is in memory at once"


def test_a_tick_that_ends_within_a_gulp_goes_on_with_the_next_message() -> None:
    payloads = [b"%d" % n + b"x" * (200_000 if n % 4 == 1 else 10) for n in range(20)]
    rig = Rig(Wire(*map(message, payloads)))
    with mock.patch.object(wal_reader, "TICK_SECONDS", 1e9):
        rig.run()
    assert rig.base.received == payloads
    assert rig.base.flushed == 3


def test_a_gulp_is_as_large_as_what_the_tick_had_before() -> None:
    rig = Rig(Wire(*[message(b"x") for _ in range(300)]))
    with mock.patch.object(wal_reader, "TICK_SECONDS", 1e9):
        rig.run()
    assert rig.base.gulps == [8, 8, 16, 32, 48, 48, 48, 48, 44]
    assert rig.base.flushed == 1


def test_a_tick_ends_when_it_lasts_too_long() -> None:
    wire = Wire(*[message(b"x") for _ in range(4)])
    rig = Rig(wire)
    with mock.patch.multiple(wal_reader, TICK_SECONDS=-1.0, GULP_MESSAGES_MIN=1):
        rig.run()
    assert rig.base.flushed == 4


def test_a_busy_tick_pauses_for_more_until_a_pause_brings_nothing() -> None:
    wire = Wire(message(b"a"), None, message(b"b"), message(b"c"), None, None, message(b"d"))
    wire.wake()
    rig = Rig(wire)
    wire.on_empty = wire.calm
    with (
        mock.patch.object(wal_reader._Pace, "is_busy", return_value=True),
        mock.patch.multiple(wal_reader, TICK_SECONDS=1e9, PAUSE_SECONDS=0),
    ):
        rig.run(seconds=0.5)
    assert rig.base.received == [b"a", b"b", b"c", b"d"]
    assert rig.base.flushed == 2


def test_a_log_is_busy_by_what_came_of_late() -> None:
    pace = wal_reader._Pace(100.0)
    pace.seen = 10 * BUSY_MESSAGES
    assert not pace.is_busy(100.0 + BUSY_SECONDS / 2)  # nothing is over yet
    assert pace.is_busy(100.0 + 2 * BUSY_SECONDS)
    pace.seen = BUSY_MESSAGES // 2
    assert pace.is_busy(100.0 + 2.5 * BUSY_SECONDS)
    assert not pace.is_busy(100.0 + 3.5 * BUSY_SECONDS)
    pace.seen = 10 * BUSY_MESSAGES
    assert not pace.is_busy(200.0)  # many, but over a long time


def test_each_message_of_a_gulp_may_lack_something() -> None:
    rig = Rig(Wire(message(b"a"), *[message(b"%d" % n) for n in range(5)], message(b"b")))
    rig.base.missing = dict.fromkeys([b"1", b"3"], 1.0)
    recover = rig.base.recover

    async def one_after_the_other(miss: CatalogMiss) -> None:
        try:
            await recover(miss)
        except CatalogMiss as another:
            await recover(another)

    with mock.patch.object(rig.base, "recover", one_after_the_other):
        rig.run(seconds=10)
    assert rig.base.received == [b"a", b"0", b"1", b"2", b"3", b"4", b"b"]
