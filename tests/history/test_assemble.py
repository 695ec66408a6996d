"""Records become transactions: whole, in order, within the memory that they may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from walstream.errors import DecodeError
from walstream.history.assemble import CELL_BYTES, CHANGE_BYTES, Assembler, change_bytes
from walstream.model import Begin, Change, Column, Commit, Message, Operation, Relation, Transaction

THINGS = Relation("public", "things", (Column("n", 23, "int4"),))
LIMIT = 4 * (CHANGE_BYTES + CELL_BYTES)


class MemorySpill:
    """A spill that counts, in memory."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.stored: list[Change] = []

    def append(self, change: Change) -> None:
        self.stored.append(change)

    def changes(self) -> Sequence[Change]:
        return self.stored


class FullDisk(MemorySpill):
    def append(self, change: Change) -> None:
        raise OSError(28, "No space left on device")


def change(number: int) -> Change:
    return Change(THINGS, Operation.INSERT, (b"%d" % number,), None, number, number)


def assembler(spill_bytes: int = LIMIT) -> Assembler:
    return Assembler(spill_bytes=spill_bytes, new_spill=MemorySpill)


def test_a_transaction_has_everything_between_begin_and_commit() -> None:
    made = assembler()
    note = Message("walstream", b"hello", True, 7)
    made.begin(Begin(9, 1234))
    made.change(change(1), 10)
    made.control(change(2), 10)
    made.message(note)
    made.change(change(3), 10)
    transaction, spilled = made.commit(Commit(77))
    assert not spilled
    assert (transaction.xid, transaction.commit_at, transaction.commit_lsn) == (9, 1234, 77)
    assert [each.ordinal for each in transaction.changes] == [1, 3]
    assert [each.ordinal for each in transaction.control] == [2]
    assert transaction.messages == (note,)
    assert transaction.size == CHANGE_BYTES + 3 * (CHANGE_BYTES + CELL_BYTES + 10) + CHANGE_BYTES + 5


def test_the_size_counts_cells_of_both_rows_and_the_message() -> None:
    row = (b"1", None, b"2")
    assert change_bytes(Change(THINGS, Operation.UPDATE, row, row, 0), 100) == CHANGE_BYTES + 6 * CELL_BYTES + 100
    assert change_bytes(Change(THINGS, Operation.TRUNCATE, None, None, 0), 0) == CHANGE_BYTES


def test_a_large_transaction_goes_to_one_spill_with_its_beginning() -> None:
    made = assembler()
    MemorySpill.made = 0
    made.begin(Begin(1, 0))
    for number in range(20):
        made.change(change(number))
    transaction, spilled = made.commit(Commit(5))
    assert spilled
    assert MemorySpill.made == 1
    assert [each.ordinal for each in transaction.changes] == list(range(20))
    assert transaction.size == CHANGE_BYTES
    made.begin(Begin(2, 0))
    made.change(change(1))
    assert made.commit(Commit(6))[1] is False


def test_one_large_change_is_enough_and_the_limit_itself_is_not() -> None:
    made = assembler()
    made.begin(Begin(1, 0))
    made.change(change(1), LIMIT - CHANGE_BYTES - CELL_BYTES)
    assert made.commit(Commit(5))[1] is False
    made.begin(Begin(1, 0))
    made.change(change(1), LIMIT - CHANGE_BYTES - CELL_BYTES + 1)
    assert made.commit(Commit(5))[1] is True


def test_a_full_disk_is_told_and_the_next_transaction_is_not_hurt() -> None:
    made = Assembler(spill_bytes=0, new_spill=FullDisk)
    made.begin(Begin(1, 0))
    with pytest.raises(OSError, match="No space left"):
        made.change(change(1))
    made.reset()
    assert not made.is_open
    made.begin(Begin(2, 0))
    transaction, spilled = made.commit(Commit(9))
    assert (transaction.xid, list(transaction.changes), spilled) == (2, [], False)


@pytest.mark.parametrize(
    "record",
    [
        lambda made: made.change(change(1)),
        lambda made: made.control(change(1)),
        lambda made: made.message(Message("walstream", b"", True, 0)),
        lambda made: made.commit(Commit(1)),
    ],
    ids=["change", "control", "message", "commit"],
)
def test_nothing_is_taken_outside_a_transaction(record: Callable[[Assembler], object]) -> None:
    made = assembler()
    with pytest.raises(DecodeError):
        record(made)
    made.begin(Begin(1, 0))
    made.commit(Commit(2))
    with pytest.raises(DecodeError):
        record(made)


class Assembling(RuleBasedStateMachine):
    """Any order of records and interruptions, against plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.assembler = assembler()
        self.xid = 0
        self.open = False
        self.changes: list[Change] = []
        self.control: list[Change] = []
        self.messages: list[Message] = []
        self.size = 0
        self.number = 0

    def _forget(self) -> None:
        self.changes, self.control, self.messages, self.size = [], [], [], 0

    @rule()
    def begin(self) -> None:
        self.xid += 1
        self._forget()
        self.open = True
        self.assembler.begin(Begin(self.xid, self.xid * 10))

    @rule(size=st.integers(0, 300))
    def change(self, size: int) -> None:
        self.number += 1
        if not self.open:
            with pytest.raises(DecodeError):
                self.assembler.change(change(self.number), size)
            return
        self.changes.append(change(self.number))
        self.size += change_bytes(self.changes[-1], size)
        self.assembler.change(self.changes[-1], size)

    @precondition(lambda self: self.open)
    @rule()
    def beside(self) -> None:
        self.control.append(change(0))
        self.messages.append(Message("p", b"x", True, 0))
        self.assembler.control(self.control[-1])
        self.assembler.message(self.messages[-1])

    @rule()
    def cut_off(self) -> None:
        self.assembler.reset()
        self.open = False
        self._forget()

    @invariant()
    def open_is_open(self) -> None:
        assert self.assembler.is_open is self.open

    @rule(lsn=st.integers(1, 1 << 63))
    def commit(self, lsn: int) -> None:
        if not self.open:
            with pytest.raises(DecodeError):
                self.assembler.commit(Commit(lsn))
            return
        transaction, spilled = self.assembler.commit(Commit(lsn))
        self.open = False
        assert spilled == (self.size > LIMIT)
        assert self._known(transaction) == (self.xid, lsn, self.xid * 10)
        assert list(transaction.changes) == self.changes
        assert (transaction.control, transaction.messages) == (tuple(self.control), tuple(self.messages))
        assert transaction.size <= LIMIT + CHANGE_BYTES + len(self.control) * 3 * (CHANGE_BYTES + CELL_BYTES)
        self._forget()

    @staticmethod
    def _known(transaction: Transaction) -> tuple[int, int, int]:
        return transaction.xid, transaction.commit_lsn, transaction.commit_at


TestAssembling = Assembling.TestCase
