"""When a tick of the reader ends, and when it waits for more."""

from __future__ import annotations

from unittest import mock

from tests.shell.wal.test_wal_reader import Rig, Wire, message
from walstream.shell.wal import wal_reader
from walstream.shell.wal.wal_reader import BUSY_MESSAGES, BUSY_SECONDS


def test_a_tick_ends_when_it_is_large_enough() -> None:
    wire = Wire(*[message(b"x" * 100_000) for _ in range(9)])
    rig = Rig(wire)
    with mock.patch.object(wal_reader, "TICK_SECONDS", 1e9):
        rig.run()
    assert rig.base.flushed == 3


def test_a_tick_ends_when_it_lasts_too_long() -> None:
    wire = Wire(*[message(b"x") for _ in range(4)])
    rig = Rig(wire)
    with mock.patch.multiple(wal_reader, TICK_SECONDS=-1.0, CLOCK_MESSAGES=1):
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
