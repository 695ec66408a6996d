"""An oracle that cannot fail is a defect: each bug, put into a running daemon, is found by the oracle meant for it."""

from __future__ import annotations

import random

import pytest

from integration.faults.conftest import Open
from integration.faults.lab import Lab
from integration.faults.scenarios import drop_the_slot, ready, said
from integration.fixtures.node import eventually
from walstream.shell.wal.wal_reader import SILENCE_SECONDS
from walstream.telemetry.log import HEARTBEAT_MISSED, READER_STARTED

FOUND_BY = {
    "drop-a-change": "P1",
    "reorder-two": "P1",
    "deliver-twice": "P1",
    "tear-a-transaction": "P2",
    "skip-in-catch-up": "P3",
    "acknowledge-early": "P4",
}


def found(lab: Lab, bug: str, *, seconds: float = 1.0) -> dict[str, list[str]]:
    lab.arm(f"{bug}:5")
    lab.write(seconds)
    return lab.settle().complaints


def test_heartbeats_that_are_written_and_never_come_are_told(shared: Open) -> None:
    """Once in the log; and that alone is no reason to begin the stream anew, which brings everything else."""
    with shared(few=True) as lab:
        eventually(lambda: '"ready"' in ready(lab))
        lab.arm("lose-heartbeats:5")
        eventually(lambda: '"ready"' in ready(lab))
        eventually(lambda: '"degraded"' in ready(lab))
        assert "heartbeat: overdue" in ready(lab)
        streams = said(lab, READER_STARTED)
        lab.write(SILENCE_SECONDS + 1)
        assert (said(lab, READER_STARTED), said(lab, HEARTBEAT_MISSED)) == (streams, 1)
        assert lab.settle().all == []


@pytest.mark.timeout(300)
def test_every_bug_is_found_by_its_oracle(shared: Open) -> None:
    with shared(few=True) as lab:
        lab.write(1)
        assert lab.settle().all == []
        for bug, oracle in FOUND_BY.items():
            complaints = found(lab, bug, seconds=5 if bug == "acknowledge-early" else 1)
            assert complaints[oracle], (bug, complaints)


def test_a_gap_that_nobody_is_told_of_is_found(shared: Open) -> None:
    with shared(few=True) as lab:
        lab.arm("silence:1")
        lab.settle(may_gap=True)
        drop_the_slot(lab, random.Random(1))
        lab.write(1)
        assert lab.settle(may_gap=True).complaints["P3"]


def test_a_gap_that_everybody_is_told_of_is_no_silent_one(shared: Open) -> None:
    with shared(few=True) as lab:
        drop_the_slot(lab, random.Random(1))
        lab.write(1)
        assert lab.settle(may_gap=True).all == []
