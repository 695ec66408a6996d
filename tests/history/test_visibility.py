"""What a snapshot does not see is live, around the wrap of xids and across restarts of the server."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from walstream.history.visibility import extend_xid, is_live, settled
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction

EPOCH = 1 << 32
XIDS = st.one_of(
    st.integers(3, 1 << 48),
    st.builds(lambda epoch, near: max(3, epoch * EPOCH + near), st.integers(0, 5), st.integers(-1000, 1000)),
)


def transaction(xid: int, commit_lsn: int = 0) -> Transaction:
    return Transaction(xid & (EPOCH - 1), Lsn(commit_lsn), 0, ())


@given(XIDS, st.integers(-(EPOCH // 2) + 1, EPOCH // 2 - 1))
def test_an_xid_within_half_an_epoch_is_extended_exactly(near: int, away: int) -> None:
    full = near + away
    assume(full >= 0)
    assert extend_xid(full & (EPOCH - 1), near) == full


@given(st.integers(0, EPOCH - 1), st.integers(0, 1 << 60))
def test_an_extended_xid_keeps_its_low_bits_and_is_never_negative(xid: int, near: int) -> None:
    full = extend_xid(xid, near)
    assert full & (EPOCH - 1) == xid
    assert full >= 0
    assert abs(full - near) <= EPOCH // 2 or (full < EPOCH and near < EPOCH)


@given(XIDS, st.integers(0, 100), st.data())
def test_a_transaction_is_live_exactly_when_the_snapshot_does_not_see_it(
    xmin: int, width: int, data: st.DataObject
) -> None:
    running = data.draw(st.sets(st.integers(xmin, xmin + width), max_size=10))
    snapshot = Snapshot(xmin, xmin + width, frozenset(x for x in running if x < xmin + width), 1000, 2000, 1.0)
    xid = data.draw(st.integers(max(3, xmin - 50), xmin + width + 50))
    sees = xid < snapshot.xmax and xid not in snapshot.in_progress
    assert is_live(transaction(xid, 500), snapshot) is not sees
    assert is_live(transaction(xid, 500), snapshot, 1.0) is not sees
    # Position says nothing as long as the server is the same one: commits are decoded before snapshots see them.
    assert is_live(transaction(xid, 5000), snapshot, 1.0) is not sees


SNAPSHOT = Snapshot(100, 110, frozenset({100, 105}), 1000, 1200, 1.0)


def test_after_a_restart_everything_beyond_the_flushed_wal_is_live_whatever_its_xid() -> None:
    assert not is_live(transaction(102, 1001), SNAPSHOT, 1.0)
    assert is_live(transaction(102, 1001), SNAPSHOT, 2.0)
    assert is_live(transaction(50, 1001), SNAPSHOT, 2.0)


def test_after_a_restart_xids_still_decide_below_the_flushed_wal() -> None:
    assert not is_live(transaction(102, 1000), SNAPSHOT, 2.0)
    # Its commit was flushed and survived, but the snapshot had not seen it end.
    assert is_live(transaction(105, 1000), SNAPSHOT, 2.0)
    assert is_live(transaction(111, 1000), SNAPSHOT, 2.0)


@given(st.integers(0, 3000), st.integers(0, 2000), st.integers(3, 200), st.sampled_from([None, 1.0, 2.0]))
def test_what_is_settled_is_live_and_stays_settled(
    commit_lsn: int, later: int, xid: int, server_start: float | None
) -> None:
    # The server's own promise: what a snapshot sees had its commit record in the WAL before insert_lsn was read.
    sees = xid < SNAPSHOT.xmax and xid not in SNAPSHOT.in_progress
    restarted = server_start == 2.0
    assume(not (sees and commit_lsn > SNAPSHOT.insert_lsn) or restarted)
    if settled(transaction(xid, commit_lsn), SNAPSHOT):
        assert is_live(transaction(xid, commit_lsn), SNAPSHOT, server_start)
        assert settled(transaction(xid + 1, commit_lsn + later), SNAPSHOT)


def test_a_snapshot_settles_behind_its_insert_position() -> None:
    assert not settled(transaction(200, 1200), SNAPSHOT)
    assert settled(transaction(200, 1201), SNAPSHOT)
