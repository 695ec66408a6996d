"""An oracle that cannot fail is a defect: each bug, put into a running daemon, is found by the oracle meant for it."""

from __future__ import annotations

import random

import pytest

from integration.faults.conftest import Open
from integration.faults.lab import Lab
from integration.faults.scenarios import drop_the_slot

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
