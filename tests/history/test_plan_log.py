"""What is captured anew is known before the stream gets there, and told where it does."""

from __future__ import annotations

from collections.abc import Sequence

from walstream.history.lineage import Lineage
from walstream.history.plan_log import Anew, PlanLog
from walstream.history.position import Position
from walstream.history.resume import PLAN_CHANGED, PlanChange, Start, resume, standing
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Transaction

T = ("public", "t")
TABLES = frozenset({T})


class Stream:
    """Commits that come one after the other."""

    def __init__(self) -> None:
        self.ring = Ring(bytes_max=1000, seconds=1.0, wal_bytes=1000)
        self.ring.restart(Lineage("abcd"), 50)
        self.log = PlanLog(self.ring)

    def commit(self, lsn: int, xid: int = 0) -> Sequence[tuple[int, object]]:
        transaction = Transaction(xid or lsn, Lsn(lsn), 0, (), size=1)
        reached = [(int(change.commit_lsn), audience) for change, audience in self.log.reached(transaction)]
        if reached:
            assert self.ring.end == reached[-1][0], "who is told of it comes back to what follows"
        self.ring.append(transaction, 0)
        return reached

    def answer(self, position: Position, wished: tuple[str, str] = T) -> Start | str:
        return resume(self.ring, position, Lsn(10_000), self.log.changes, wished)


def test_it_is_told_once_before_the_first_commit_beyond() -> None:
    stream = Stream()
    stream.log.expect(Anew(TABLES, 200), ["a join"])
    assert stream.commit(100) == []
    assert stream.commit(200) == []
    assert stream.commit(300) == [(299, ["a join"])]
    assert stream.commit(400) == []


def test_whoever_comes_back_from_before_it_is_told_and_nobody_else() -> None:
    stream = Stream()
    stream.commit(100)
    stream.log.expect(Anew(TABLES, 200), ())
    stream.commit(300)
    middle = Position("abcd", 100, Lsn(100), 0)
    assert stream.answer(middle) == PLAN_CHANGED
    assert stream.answer(middle, ("public", "u")) == Start(Lsn(100), 0, 100)
    assert stream.answer(Position("abcd", 300, Lsn(300), 0)) == Start(Lsn(300), 0, 300)
    assert isinstance(stream.answer(standing(stream.ring, 299)), Start)


def test_who_was_writing_meanwhile_is_told_of_when_they_commit() -> None:
    stream = Stream()
    stream.log.expect(Anew(TABLES, 200, frozenset({7, 8})), "joins")
    assert stream.commit(300) == [(299, "joins")]
    assert stream.commit(310) == []
    assert stream.commit(320, xid=7) == [(319, "joins")]
    assert stream.answer(Position("abcd", 310, Lsn(310), 0)) == PLAN_CHANGED
    assert stream.commit(330) == []


def test_who_wrote_and_is_the_first_to_commit_is_told_of_once() -> None:
    stream = Stream()
    stream.log.expect(Anew(TABLES, 200, frozenset({7})), "joins")
    assert stream.commit(300, xid=7) == [(299, "joins")]


def test_what_has_left_the_window_and_what_has_no_continuation_is_forgotten() -> None:
    stream = Stream()
    stream.log.add(PlanChange(Lsn(100), TABLES))
    stream.log.expect(Anew(TABLES, 200, frozenset({7})), "joins")
    assert len(stream.log.changes) == 1
    stream.commit(300)
    assert len(stream.log.changes) == 2
    stream.ring.clear()
    assert len(stream.log.changes) == 0
    stream.log.expect(Anew(TABLES, 350), "joins")
    stream.log.clear()
    assert stream.commit(400, xid=7) == []
