"""A decoder's records become whole transactions, with bounded memory.

Which changes count is asked of ``Admit``; where a large transaction's changes are kept is a ``Spill`` of the shell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from walstream.errors import DecodeError
from walstream.lsn import Lsn
from walstream.model import Begin, Change, Commit, Message, Record, Row, Transaction

CHANGE_BYTES = 200
"""What a change costs beside its cells."""

CELL_BYTES = 40
"""What a cell costs beside its text."""


class Spill(Protocol):
    """A sequence of changes outside memory."""

    def append(self, change: Change) -> None:
        """Add a change. Raises OSError where it cannot be stored."""
        ...

    def changes(self) -> Sequence[Change]:
        """All of them, to be iterated as often as wanted."""
        ...


def row_bytes(row: Row | None) -> int:
    """Bytes that a row keeps resident, about."""
    if row is None:
        return 0
    return sum([len(cell) + CELL_BYTES for cell in row if cell is not None])


class Assembler:
    """Collects the records between Begin and Commit. ``reset`` forgets a transaction that was cut off."""

    def __init__(self, *, spill_bytes: int, new_spill: Callable[[], Spill]) -> None:
        self._spill_bytes = spill_bytes
        self._new_spill = new_spill
        self.reset()

    def reset(self) -> None:
        """The connection ended: what was begun comes again from its beginning."""
        self._begin: Begin | None = None
        self._changes: list[Change] = []
        self._control: list[Change] = []
        self._messages: list[Message] = []
        self._spill: Spill | None = None
        self._size = 0

    @property
    def is_open(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._begin is not None

    def begin(self, record: Begin) -> None:
        """Start a transaction."""
        self.reset()
        self._begin = record

    def change(self, change: Change) -> None:
        """Add a captured change."""
        if self._spill is not None:
            self._spill.append(change)
            return
        self._changes.append(change)
        self._size += CHANGE_BYTES + row_bytes(change.new) + row_bytes(change.old)
        if self._size > self._spill_bytes:
            self._spill = self._new_spill()
            for earlier in self._changes:
                self._spill.append(earlier)
            self._changes = []
            self._size = 0

    def control(self, change: Change) -> None:
        """Add a change of one of walstream's own tables."""
        self._control.append(change)

    def message(self, message: Message) -> None:
        """Add a transactional logical message."""
        self._messages.append(message)

    def commit(self, record: Commit) -> tuple[Transaction, bool]:
        """End the transaction. Returns it, and whether its changes lie in a spill. Raises DecodeError without a Begin."""
        if self._begin is None:
            raise DecodeError("a commit without a begin")
        transaction = Transaction(
            xid=self._begin.xid,
            commit_lsn=Lsn(record.lsn),
            commit_at=self._begin.commit_at,
            changes=self._changes if self._spill is None else self._spill.changes(),
            control=tuple(self._control),
            messages=tuple(self._messages),
            size=self._size + CHANGE_BYTES,
        )
        spilled = self._spill is not None
        self.reset()
        return transaction, spilled


__all__ = ["Assembler", "Record", "Spill"]
