"""Why a position has no continuation, and that who was told of a gap is not told of the same one again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.history.lineage import Lineage
from walstream.history.plan_log import PlanLog
from walstream.history.position import Position
from walstream.history.resume import POISON_SKIPPED, SLOT_LOST, TOO_OLD, Start, resume, standing
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction

TABLE = ("public", "t")
FAR = Lsn(1 << 40)


def window(lost: str = "") -> Ring:
    """A slot from 100 on; 200 has left the window, 300 is in it."""
    ring = Ring(bytes_max=15, seconds=1e9, wal_bytes=1 << 60)
    ring.restart(Lineage("abcd"), 100, lost=lost)
    for lsn in (200, 300):
        ring.append(Transaction(lsn, Lsn(lsn), 0, (), size=10), 0)
    return ring


def answer(ring: Ring, lsn: int) -> str:
    found = resume(ring, Position("abcd", 0, Lsn(lsn), 0), FAR, (), TABLE)
    return found if isinstance(found, str) else ""


@pytest.mark.parametrize(
    ("lost", "at", "reason"),
    [
        (SLOT_LOST, 99, SLOT_LOST), (SLOT_LOST, 100, TOO_OLD), (SLOT_LOST, 199, TOO_OLD), (SLOT_LOST, 200, ""),
        (SLOT_LOST, 300, ""), (POISON_SKIPPED, 99, POISON_SKIPPED), ("", 99, TOO_OLD), ("", 200, ""),
    ],
)  # fmt: skip
def test_what_the_slot_never_had_is_another_cause_than_what_has_left_the_window(
    lost: str, at: int, reason: str
) -> None:
    assert answer(window(lost), at) == reason


@pytest.mark.parametrize(("at", "told"), [(200, True), (300, True), (400, True), (401, False)])
def test_who_has_not_got_beyond_what_was_left_out_is_told_if_it_is_of_that_table(at: int, *, told: bool) -> None:
    """Its commit record begins at 400."""
    ring = window()
    log = PlanLog(ring)
    log.left_out(400, TABLE)
    position = Position("abcd", 0, Lsn(at), 0)
    assert (resume(ring, position, FAR, log.changes, TABLE) == POISON_SKIPPED) is told
    assert isinstance(resume(ring, position, FAR, log.changes, ("public", "u")), Start)
    assert isinstance(resume(ring, standing(ring, ring.end), FAR, log.changes, TABLE), Start), "who was told"
    log.left_out(0, None)
    assert resume(ring, Position("abcd", 0, Lsn(300), 0), FAR, log.changes, ("public", "u")) == POISON_SKIPPED


def test_another_slot_begins_where_the_first_one_did_not() -> None:
    ring = window(SLOT_LOST)
    ring.restart(Lineage("abcd"), 500)
    assert answer(ring, 99) == TOO_OLD
    ring.restart(Lineage("abcd"), 600, lost=SLOT_LOST)
    assert answer(ring, 599) == SLOT_LOST


happenings = st.lists(
    st.tuples(st.sampled_from(["append", "pass", "restart", "new", "skip", "evict", "clear"]), st.integers(1, 50)),
    max_size=30,
)


@given(happenings, happenings, st.integers(0, 40))
def test_the_position_of_a_gap_goes_on_with_everything_after_it(
    before: list[tuple[str, int]], after: list[tuple[str, int]], seen: int
) -> None:
    """Of a gap that is told now, and of one that a join is told whose snapshot sees all or some."""
    ring = Ring(bytes_max=200, seconds=1e9, wal_bytes=1 << 60)
    log = PlanLog(ring)
    lsn = 1000

    def play(happened: list[tuple[str, int]]) -> None:
        nonlocal lsn
        for what, size in happened:
            lsn += 10
            if what == "append":
                ring.append(Transaction(lsn, Lsn(lsn), 0, (), size=size), 0)
            elif what == "pass":
                ring.pass_by(lsn)
            elif what in ("restart", "new"):
                ring.restart(Lineage("abcd"), lsn, lost=SLOT_LOST if what == "new" else "")
                log.clear()
            elif what == "skip":
                log.left_out(lsn, TABLE)
            elif what == "evict":
                ring.evict(2e9 if size < 10 else 0)
            else:
                ring.clear()

    play([("restart", 1), *before])
    xmax = lsn + 10 - 10 * seen
    snapshot = Snapshot(xmax, xmax, frozenset(), lsn, lsn, 1.0)
    live = [each.commit_lsn for _, each in ring.maybe_live(snapshot, ring.next_sequence)]
    told, joined = standing(ring, ring.end), standing(ring, ring.before_live(snapshot, ring.next_sequence))
    last = lsn
    for position, missed in ((told, []), (joined, live)):
        found = resume(ring, position, FAR, log.changes, TABLE)
        if found == POISON_SKIPPED:
            assert missed, "what lies before that has yet to come"
            continue
        assert isinstance(found, Start)
        assert all(not found.covers(each, 0) for each in missed)
        assert not found.covers(last + 10, 0)
    play([each for each in after if each[0] in ("append", "pass")])
    found = resume(ring, told, FAR, log.changes, TABLE)
    assert found == TOO_OLD or isinstance(found, Start)
