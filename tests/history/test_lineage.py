"""Whose history a position is of, and what the lines of a history file say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.history.lineage import Lineage, lineage
from walstream.history.position import cluster_digest
from walstream.lsn import Lsn

HISTORY = "1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tbefore transaction 7\n"


@pytest.mark.parametrize(
    ("cluster", "commit_lsn", "has"),
    [
        (cluster_digest("47", 3), 1 << 60, True),
        (cluster_digest("47", 1), 0x3000148, True),
        (cluster_digest("47", 1), 0x3000149, False),
        (cluster_digest("47", 2), 0x1_0000_00A0, True),
        (cluster_digest("47", 2), 0x1_0000_00A1, False),
        (cluster_digest("47", 4), 1, False),
        (cluster_digest("48", 1), 1, False),
        ("", 0, False),
    ],
)
def test_a_commit_is_of_the_history_up_to_where_its_timeline_was_left(cluster: str, commit_lsn: int, has: bool) -> None:
    assert lineage("47", 3, HISTORY).has(cluster, commit_lsn) is has


def test_a_first_timeline_has_no_ancestors() -> None:
    assert lineage("47", 1) == Lineage(cluster_digest("47", 1))


@given(st.text())
def test_what_is_no_line_of_a_history_is_passed_over(text: str) -> None:
    assert lineage("47", 2, text).has(cluster_digest("47", 2), 5)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, (1 << 64) - 1)), unique_by=lambda line: line[0]))
def test_what_is_written_is_read(lines: list[tuple[int, int]]) -> None:
    text = "".join(f"{timeline}\t{Lsn(lsn)}\tany reason / at all\n" for timeline, lsn in lines)
    assert lineage("47", 10, text).ancestors == {cluster_digest("47", timeline): lsn for timeline, lsn in lines}
