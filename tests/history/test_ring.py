"""The ring keeps its bounds, never confirms what its window still holds, and finds what a join may have missed."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.shell.fanout_support import changes
from walstream.history.lineage import Lineage
from walstream.history.position import Position
from walstream.history.resume import TOO_OLD, Start, resume, standing
from walstream.history.ring import EVERYTHING, Ring
from walstream.history.visibility import is_live
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction

EPOCH = 1 << 32


def transaction(commit_lsn: int, size: int = 10, xid: int = 0) -> Transaction:
    return Transaction((xid or commit_lsn) & (EPOCH - 1), Lsn(commit_lsn), 0, (), size=size)


def ring(bytes_max: int = 1000, seconds: float = 100, wal_bytes: int = 1000) -> Ring:
    return Ring(bytes_max=bytes_max, seconds=seconds, wal_bytes=wal_bytes)


def kept(made: Ring) -> list[tuple[int, Transaction]]:
    """Sequence numbers and transactions of the window."""
    numbers = range(made.oldest_sequence, made.next_sequence)
    return [(number, found) for number in numbers if (found := made.at(number)) is not None]


def ends(made: Ring) -> list[int]:
    return [int(each.commit_lsn) for _, each in kept(made)]


def test_bytes_end_the_window() -> None:
    made = ring(bytes_max=25)
    for lsn in (10, 20, 30):
        made.append(transaction(lsn), 0)
    assert ends(made) == [20, 30]
    assert (made.size, made.confirmable, made.newest) == (20, 10, 30)


def test_a_transaction_larger_than_the_ring_leaves_it_empty_and_confirmable() -> None:
    made = ring(bytes_max=25)
    made.append(transaction(10), 0)
    made.append(transaction(20, size=26), 0)
    assert (ends(made), made.size, made.confirmable) == ([], 0, 20)


def test_seconds_end_the_window_while_nothing_comes() -> None:
    made = ring(seconds=5)
    made.append(transaction(10), 0)
    made.append(transaction(20), 3)
    made.evict(5)
    assert ends(made) == [10, 20]
    made.evict(5.1)
    assert ends(made) == [20]
    made.evict(9)
    assert (ends(made), made.confirmable) == ([], 20)


def test_wal_ends_the_window_counted_from_where_the_slot_holds_it() -> None:
    made = ring(wal_bytes=100)
    for lsn in (1010, 1050, 1090):
        made.append(transaction(lsn), 0)
    made.evict(0, restart_lsn=990)
    assert ends(made) == [1010, 1050, 1090]
    made.evict(0, restart_lsn=980)
    assert (ends(made), made.confirmable) == ([1050, 1090], 1010)


def test_wal_of_others_ends_the_window_too() -> None:
    made = ring(wal_bytes=100)
    made.append(transaction(1010), 0)
    made.append(transaction(1050), 0)
    made.evict(0, restart_lsn=1000, wal_end=1100)
    assert ends(made) == [1010, 1050]
    made.evict(0, restart_lsn=1000, wal_end=1150)
    assert (ends(made), made.confirmable) == ([], 1050)


def test_a_slot_held_back_by_an_open_transaction_does_not_drain_the_ring() -> None:
    made = ring(wal_bytes=100)
    for lsn in range(1010, 1400, 10):
        made.append(transaction(lsn), 0)
    made.evict(0, restart_lsn=100)
    kept = ends(made)
    assert kept[0] == 1300
    for _ in range(5):
        made.evict(0, restart_lsn=100)
    assert ends(made) == kept


def test_without_a_known_slot_wal_bounds_nothing_until_something_is_confirmable() -> None:
    made = ring(wal_bytes=1)
    made.append(transaction(1010), 0)
    made.append(transaction(9010), 0)
    made.evict(0)
    assert len(made) == 2


def test_clearing_makes_everything_confirmable_and_restarting_nothing() -> None:
    made = ring()
    made.append(transaction(10), 0)
    made.clear()
    assert (len(made), made.size, made.confirmable, made.is_known(10)) == (0, 0, 10, True)
    made.append(transaction(20), 0)
    made.restart(Lineage("abcdef01"))
    assert (len(made), made.size, made.confirmable, made.is_known(10)) == (0, 0, 0, False)
    assert made.append(transaction(5), 0) == 2
    assert made.by_commit(20) is None
    made.restart(Lineage("abcdef02"), 400)
    assert (made.floor, made.confirmable) == (400, 0)
    made.pass_by(500)
    assert (made.floor, made.confirmable) == (400, 500)


def test_what_brings_nothing_ages_no_position() -> None:
    """Who was told of the newest change goes on from it, however much others wrote meanwhile."""
    made = ring(seconds=10)
    made.append(transaction(10, xid=7), 0)
    made.append(msgspec.structs.replace(transaction(20, xid=8), changes=[*changes(1, 2)]), 1)
    made.evict(100)
    made.pass_by(30)
    assert (len(made), made.floor, made.confirmable) == (0, 20, 30)
    known = Position(made.cluster, 8, Lsn(20), 1)
    assert resume(made, known, Lsn(30), (), ("public", "t")) == Start(Lsn(20), 1, 8)
    assert resume(made, known._replace(xid=7, commit_lsn=Lsn(10)), Lsn(30), (), ("public", "t")) == TOO_OLD


def test_who_stopped_within_a_transaction_that_has_left_the_window_has_missed_its_rest() -> None:
    made = ring(seconds=10)
    within = Position(made.cluster, 8, Lsn(20), 0)
    made.append(msgspec.structs.replace(transaction(20, xid=8), changes=[*changes(1, 2)]), 0)
    assert resume(made, within, Lsn(30), (), ("public", "t")) == Start(Lsn(20), 0, 8)
    made.evict(100)
    assert resume(made, within, Lsn(30), (), ("public", "t")) == TOO_OLD
    large = msgspec.structs.replace(transaction(40, xid=9), changes=(*changes(1, 2),))
    made.append(large, 100)  # in a file, say
    made.evict(200)
    newest = Position(made.cluster, 9, Lsn(40), 1)
    assert resume(made, newest, Lsn(50), (), ("public", "t")) == TOO_OLD
    assert resume(made, standing(made, 40), Lsn(50), (), ("public", "t")) == Start(Lsn(40), EVERYTHING)
    made.restart(made.lineage, 40)
    assert resume(made, newest, Lsn(50), (), ("public", "t")) == TOO_OLD
    assert resume(made, standing(made, 40), Lsn(50), (), ("public", "t")) == Start(Lsn(40), EVERYTHING)


def test_an_xid_that_comes_again_finds_the_newer_transaction() -> None:
    made = ring(bytes_max=25)
    made.append(transaction(10, xid=7), 0)
    made.append(transaction(20, xid=7), 0)
    made.append(transaction(30, xid=8), 0)
    in_progress = Snapshot(7, 9, frozenset({7}), 99, 99, 1.0)
    assert [each.commit_lsn for _, each in made.maybe_live(in_progress, asked_at=3)] == [20]


def test_a_commit_that_was_decoded_before_any_snapshot_sees_it_is_found() -> None:
    """Its xid is above every completed one, so the snapshot does not list it as in progress."""
    made = ring()
    made.append(transaction(10, xid=100), 0)
    made.append(transaction(20, xid=101), 0)
    snapshot = Snapshot(101, 101, frozenset(), 25, 25, 1.0)
    assert [sequence for sequence, _ in made.maybe_live(snapshot, asked_at=2)] == [1]


@given(
    st.integers(0, 2 * EPOCH).map(lambda near: max(3, near)) | st.integers(EPOCH - 20, EPOCH + 20),
    st.lists(st.integers(0, 30), unique=True, max_size=25),
    st.data(),
)
def test_nothing_live_is_missed_around_the_wrap_of_xids(base: int, order: list[int], data: st.DataObject) -> None:
    """Transactions commit in any order of their xids; the snapshot sees some that ended before it."""
    asked_at = data.draw(st.integers(0, len(order)))
    visible = {order[index] for index in data.draw(st.sets(st.integers(0, asked_at - 1)))} if asked_at else set()
    # As PostgreSQL builds it: xmax follows the highest xid that ended, what runs below it is listed.
    xmax = base + max(visible, default=-1) + 1
    running = frozenset(base + number for number in range(31) if base + number < xmax and number not in visible)
    snapshot = Snapshot(min(running, default=xmax), xmax, running, 1000, 1000, 1.0)
    made = ring(bytes_max=1 << 30)
    for index, number in enumerate(order):
        made.append(transaction(10 + index, xid=base + number), 0)
    found = made.maybe_live(snapshot, asked_at)
    assert [sequence for sequence, _ in found] == sorted({sequence for sequence, _ in found})
    live = [sequence for sequence, each in kept(made) if is_live(each, snapshot)]
    assert [sequence for sequence, each in found if is_live(each, snapshot)] == live
    assert {index for index, number in enumerate(order) if number not in visible} == set(live)


def test_a_join_does_not_look_through_the_whole_ring() -> None:
    made = ring(bytes_max=1 << 30)
    for number in range(10_000):
        made.append(transaction(10 + number, xid=1000 + number), 0)
    snapshot = Snapshot(10_998, 10_999, frozenset({10_998}), 20_000, 20_000, 1.0)
    assert len(made.maybe_live(snapshot, asked_at=10_000)) == 2


def test_what_passed_by_is_confirmed_with_what_came_before_it() -> None:
    made = ring(bytes_max=25)
    made.pass_by(5)
    assert (made.confirmable, made.is_known(5)) == (5, True)
    made.append(transaction(10), 0)
    made.pass_by(15)
    assert (made.confirmable, made.newest) == (5, 15)
    made.append(transaction(20), 0)
    made.append(transaction(30), 0)
    assert (ends(made), made.confirmable) == ([20, 30], 15)
    made.pass_by(40)
    made.evict(1000)
    assert (ends(made), made.confirmable) == ([], 40)


class Keeping(RuleBasedStateMachine):
    """Any order of commits, re-reads, clocks, slots and restarts, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = ring(bytes_max=100, seconds=10, wal_bytes=200)
        self.now = 0.0
        self.lsn = 1000
        self.appended: list[tuple[int, Transaction, float]] = []  # everything of this cluster
        self.confirmed = 0
        self.passed: set[int] = set()

    @rule(step=st.integers(1, 150), size=st.integers(1, 120), xid=st.integers(3, 9))
    def commit(self, step: int, size: int, xid: int) -> None:
        self.lsn += step
        made = transaction(self.lsn, size, xid)
        assert not self.ring.is_known(self.lsn)
        sequence = self.ring.append(made, self.now)
        assert not self.appended or sequence == self.appended[-1][0] + 1
        self.appended.append((sequence, made, self.now))

    @rule(step=st.integers(1, 150))
    def pass_by(self, step: int) -> None:
        self.lsn += step
        self.ring.pass_by(self.lsn)
        self.passed.add(self.lsn)
        assert self.ring.is_known(self.lsn)

    @rule(data=st.data())
    def read_again(self, data: st.DataObject) -> None:
        """The stream starts over from somewhere: everything that was appended is known, nothing else is."""
        if self.appended:
            _, made, _ = data.draw(st.sampled_from(self.appended))
            assert self.ring.is_known(made.commit_lsn)
        assert not self.ring.is_known(self.lsn + 1)

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ring.evict(self.now)
        assert all(self.now - at <= 10 for _, _, at in self._kept())

    @rule(behind=st.integers(0, 2000), others=st.integers(0, 100))
    def look_at_the_slot(self, behind: int, others: int) -> None:
        restart = max(1, self.ring.confirmable - behind)
        self.ring.evict(self.now, restart, self.lsn + others)
        held_from = max(restart, self.ring.confirmable)
        assert not self._kept() or self.lsn + others - held_from <= 200

    @rule()
    def clear(self) -> None:
        self.ring.clear()
        assert len(self.ring) == 0

    @rule(cluster=st.sampled_from(["0000000a", "0000000b"]))
    def restart(self, cluster: str) -> None:
        self.ring.restart(Lineage(cluster))
        self.appended.clear()
        self.passed.clear()
        self.lsn = 1000
        self.confirmed = 0

    def _kept(self) -> list[tuple[int, Transaction, float]]:
        return [each for each in self.appended if each[1].commit_lsn > self.ring.confirmable]

    @invariant()
    def the_window_is_what_was_not_confirmed(self) -> None:
        inside = self._kept()
        assert kept(self.ring) == [(sequence, made) for sequence, made, _ in inside]
        assert len(self.ring) == len(inside)
        assert self.ring.size == sum(made.size for _, made, _ in inside) <= 100

    @invariant()
    def confirmable_only_rises_and_is_a_commit_end(self) -> None:
        assert self.ring.confirmable >= self.confirmed
        self.confirmed = self.ring.confirmable
        known = {0, *self.passed, *(made.commit_lsn for _, made, _ in self.appended)}
        # No more is held back than the window needs.
        oldest = min((made.commit_lsn for _, made, _ in self._kept()), default=1 << 63)
        assert self.confirmed == max(lsn for lsn in known if lsn < oldest)

    @invariant()
    def transactions_are_found_by_their_commits(self) -> None:
        inside = self._kept()
        for sequence, made, _ in inside:
            assert self.ring.by_commit(made.commit_lsn) is made
            before = self.ring.by_commit(made.commit_lsn - 1)
            assert before is None or before.commit_lsn == made.commit_lsn - 1
            assert self.ring.sequence_from(made.commit_lsn) == sequence
            assert self.ring.sequence_from(made.commit_lsn + 1) == sequence + 1
        oldest = inside[0][0] if inside else self.ring.next_sequence
        assert (self.ring.oldest_sequence, self.ring.sequence_from(0)) == (oldest, oldest)
        assert self.ring.at(oldest - 1) is None
        assert self.ring.at(self.ring.next_sequence) is None


TestKeeping = Keeping.TestCase
