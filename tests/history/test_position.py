"""Positions read back as they were written, and nothing else is one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.history.position import Position, cluster_digest, head
from walstream.lsn import Lsn

POSITIONS = st.builds(
    Position,
    st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 64) - 1).map(Lsn),
    st.integers(0, 10**18 - 1),
)


@given(POSITIONS)
def test_a_position_reads_back(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert str(position) == head(position.cluster, position.xid, position.commit_lsn) + str(position.ordinal)


@given(st.text(alphabet="0123456789abcdefABCDEF.-+_ \n\0٣", max_size=60) | st.text(max_size=60))
def test_what_is_read_is_what_would_be_written(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(Position.parse(text)) == text


@given(POSITIONS, st.data())
def test_one_spoiled_character_is_refused_or_means_something_else(position: Position, data: st.DataObject) -> None:
    text = str(position)
    at = data.draw(st.integers(0, len(text)))
    spoiled = text[:at] + data.draw(st.sampled_from("0.z \n-٣")) + text[at:]
    with contextlib.suppress(ValueError):
        assert Position.parse(spoiled) != position


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "0000000.1.1.1",
        "000000000.1.1.1",
        "00000000.1.1",
        "00000000.1.1.1.1",
        "00000000.1.1.1\n",
        " 00000000.1.1.1",
        "00000000.100000000.1.1",
        "00000000.1.10000000000000000.1",
        "00000000.1.1.1000000000000000000",
        "00000000.01.1.1",
        "00000000.1.01.1",
        "00000000.1.1.01",
        "0000000A.1.1.1",
        "00000000.-1.1.1",
        "00000000.1.1.+1",
        "00000000.1.1.1_0",
        "00000000.1.1.٣",
        "x" * 1_000_000,
    ],
)
def test_hostile_text_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match="not a position") as caught:
        Position.parse(text)
    assert len(str(caught.value)) < 200


def test_clusters_and_timelines_differ() -> None:
    digests = {
        cluster_digest("7301", 1),
        cluster_digest("7301", 2),
        cluster_digest("7302", 1),
        cluster_digest("730", 11),
    }
    assert len(digests) == 4
    assert all(len(digest) == 8 for digest in digests)
    assert cluster_digest("7301", 1) == cluster_digest("7301", 1)
