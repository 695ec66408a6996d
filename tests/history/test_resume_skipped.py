"""Positions before something that was left out: their owners are told."""

from __future__ import annotations

import pytest

from walstream.history.lineage import Lineage
from walstream.history.position import Position
from walstream.history.resume import POISON_SKIPPED, resume
from walstream.history.ring import Ring
from walstream.lsn import Lsn

TABLE = ("public", "t")


@pytest.mark.parametrize(("at", "told"), [(0x100, True), (0x1FF, True), (0x200, True), (0x201, False)])
def test_who_has_not_got_beyond_what_was_left_out_is_told(at: int, *, told: bool) -> None:
    ring = Ring(bytes_max=1000, seconds=1.0, wal_bytes=1000)
    ring.restart(Lineage("abcd"), 0x80)
    ring.newest = Lsn(0x300)
    ring.skipped = Lsn(0x201)
    answer = resume(ring, Position("abcd", 0, Lsn(at), 0), Lsn(0x400), (), TABLE)
    assert (answer == POISON_SKIPPED) is told
    ring.restart(Lineage("abcd"), 0x80)
    assert resume(ring, Position("abcd", 0, Lsn(at), 0), Lsn(0x400), (), TABLE) != POISON_SKIPPED
