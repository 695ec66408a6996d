"""Snapshots that are broken off in their midst end as the table, and an oracle that could not tell would be found."""

from __future__ import annotations

import random

from integration.faults.conftest import Open
from integration.faults.scenarios import BY_NAME, break_snapshots


def test_what_is_folded_is_the_table_whatever_breaks_in_the_midst_of_pages(shared: Open) -> None:
    with shared(decoder="pgoutput", **BY_NAME["snapshots"].plan) as lab:
        break_snapshots(lab, random.Random(1), with_server=False)
        assert [text for text in lab.settle().all if "CHECKPOINT" not in text] == []
        assert sum(folder.broken for folder in lab.folders) >= 2, "the daemon's death and its connection's met pages"
        lab.arm("lose-a-row:40")
        for folder in lab.folders:
            folder.begin_anew()
        lab.write(0.5)
        assert lab.settle().complaints["fold"]
