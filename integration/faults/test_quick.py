"""The quick tier: a short round of the scenarios that have no test elsewhere. ``scripts/faults`` runs all of them long.

Which scenario is tested where is in docs/reliability.md.
"""

from __future__ import annotations

import random

import pytest

from integration.faults.conftest import Open
from integration.faults.scenarios import BY_NAME

TIMED = ("CHECKPOINT", "new events", "another stream")
"""What complaints about seconds say: those are little on a busy machine."""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("daemon killed", "newest"),
        ("server killed", "wal2json"),
        ("server stopped", "newest"),
        ("daemon suspended", "wal2json"),
        ("client stalled", "pgoutput"),
        ("slot in other hands", "wal2json"),
        ("slot recreated", "pgoutput"),
        ("slot lost", "wal2json"),
        ("clients behind a bad network", "wal2json"),
        ("database behind a silent proxy", "pgoutput"),
        ("disk full", "pgoutput"),
        ("rolling restart", "pgoutput"),
        ("large transaction", "wal2json"),
        ("large row", "newest"),
    ],
)
def test_a_scenario_holds(shared: Open, own: Open, name: str, source: str) -> None:
    """``source``: the decoder; "newest" is pgoutput on the newest server."""
    scenario = BY_NAME[name]
    is_newest = source == "newest"
    decoder = "pgoutput" if is_newest else source
    opened = own if scenario.own_server or is_newest else shared
    with opened(decoder=decoder, seed=1, is_newest=is_newest, **scenario.plan) as lab:
        scenario.run(lab, random.Random(1))
        found = lab.settle(may_gap=scenario.may_gap).all
        assert [text for text in found if not any(words in text for words in TIMED)] == []
