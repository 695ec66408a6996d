"""The reader before what it cannot get past: it tries, stands still, or has it left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import trio
import trio.lowlevel

from tests.shell.database_support import server_error
from tests.shell.wal.test_wal_reader import STREAM, TIMEOUT, Base, Rig, Wire, message
from walstream.shell.database import parked, slots
from walstream.shell.wal.poison import TRIES, UnderWay


def test_a_stream_that_cannot_get_on_is_poisoned_until_it_has_got_past() -> None:
    broken = [Wire(message(b"a"), None, message(b"broken")) for _ in range(TRIES + 2)]
    rig = Rig(*broken, Wire(message(b"a"), message(b"b")))
    rig.run(seconds=30)
    states = [state for state, _ in itertools.groupby(rig.states)]
    assert states == ["streaming", "retrying"] * (TRIES - 1) + ["streaming", "poisoned", "streaming", "stopped"]


def test_under_skip_a_broken_message_is_left_out_after_all_tries() -> None:
    rig = Rig(*[Wire(message(b"a"), message(b"broken"), message(b"b")) for _ in range(TRIES)])
    rig.reader.poison.policy = "skip"
    told: list[str] = []
    rig.reader.poison.on_skipped = lambda *_: told.append("gap")
    rig.run(seconds=30)
    assert rig.base.skipped == [b"broken"]
    assert rig.base.received[-1] == b"b"
    assert told == ["gap"]
    assert rig.states[-2:] == ["streaming", "stopped"]
    assert "poisoned" not in rig.states


TOO_LARGE = "invalid memory alloc request size 1258291203"
UNDECODABLE = ("54000", "XX000", "0A000", "22P02")


@pytest.mark.parametrize("state", UNDECODABLE)
def test_what_the_server_cannot_decode_is_advanced_past_under_skip(state: str) -> None:
    rig = Rig(*[Wire(message(b"a"), server_error(state, TOO_LARGE)) for _ in range(TRIES)], Wire())
    rig.base.under_way = UnderWay(7, 0x100)
    rig.reader.poison.policy = "skip"
    told: list[str] = []
    rig.reader.poison.on_skipped = lambda *_: told.append("gap")
    advanced: list[str] = []
    with mock.patch.object(Base, "run", _running(advanced)):
        rig.run(seconds=2)
    assert advanced[:3] == ["freed of 4711", "0/101", "parked"], (
        "PostgreSQL tells of an error before it lets go of the slot"
    )
    assert told == ["gap"]


def _running(advanced: list[str]) -> Any:
    async def run(base: Base, work: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        if not getattr(work, "__self__", None):  # not ``SlotKeeper.prepare``
            with (
                mock.patch.object(slots, "take_back") as take_back,
                mock.patch.object(slots, "advance") as advance,
                mock.patch.object(parked, "park") as park,
            ):
                answer = work(None)
            advanced.extend(f"freed of {call.args[2]}" for call in take_back.call_args_list)
            advanced.extend(str(call.args[2]) for call in advance.call_args_list)
            advanced.extend("parked" for _ in park.call_args_list)
            return answer
        return STREAM, TIMEOUT

    return run


@pytest.mark.parametrize("state", ["57P01", "53200", "58030", "55000"])
def test_what_is_no_transactions_fault_is_never_advanced_past(state: str) -> None:
    rig = Rig(*[Wire(server_error(state, "terminating connection")) for _ in range(TRIES)], Wire())
    rig.base.under_way = UnderWay(7, 0x100)
    rig.reader.poison.policy = "skip"
    advanced: list[str] = []
    with mock.patch.object(Base, "run", _running(advanced)):
        rig.run(seconds=5)
    assert advanced == []
    assert "poisoned" not in rig.states


def test_what_the_server_cannot_decode_stops_the_stream_unless_it_may_be_skipped() -> None:
    rig = Rig(*[Wire(message(b"a"), server_error("XX000", TOO_LARGE)) for _ in range(TRIES)], Wire())
    rig.base.under_way = UnderWay(7, 0x100)
    advanced: list[str] = []
    with mock.patch.object(Base, "run", _running(advanced)):
        rig.run(seconds=5)
    assert advanced == []
    assert "poisoned" in rig.states
