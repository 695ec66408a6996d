"""A decoder's records become whole transactions, with bounded memory.

Which changes count is decided before they come here; where a large transaction's changes are kept is a ``Spill`` of
the shell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from walstream.errors import DecodeError
from walstream.lsn import Lsn
from walstream.model import Begin, Change, Commit, Message, Transaction

CHANGE_BYTES = 150
"""What a change costs beside its cells: measured 125 (CPython 3.11)."""

CELL_BYTES = 50
"""What a cell costs beside its text: an object's head, its rounding and the row's reference to it. Measured 45."""


class Spill(Protocol):
    """A sequence of changes outside memory."""

    def append(self, change: Change) -> None:
        """Add a change. Raises OSError where it cannot be stored."""
        ...

    def changes(self) -> Sequence[Change]:
        """All of them, to be iterated as often as wanted."""
        ...


class Assembler:
    """Collects the records between Begin and Commit.

    ``spill_bytes``: memory that the changes of one transaction may take; beyond it all of them, the earlier ones
    included, go to a ``new_spill()``. Control changes and messages stay in memory and count for the size.
    ``reset`` forgets a transaction that was cut off.
    """

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
        self._beside = 0  # bytes of control changes and messages

    @property
    def is_open(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._begin is not None

    @property
    def begun(self) -> Begin | None:
        """The transaction that has begun and not ended."""
        return self._begin

    def begin(self, record: Begin) -> None:
        """Start a transaction; one that was not committed is forgotten."""
        if self._begin is not None:
            self.reset()
        self._begin = record

    def change(self, change: Change, size: int = 0) -> None:
        """Add a captured change. ``size``: bytes of the message that it came in, which stand for its cells' text.

        Raises DecodeError without a Begin, OSError where a spill cannot be written; ``reset`` is due then.
        """
        if self._begin is None:
            raise DecodeError("a change without a begin")
        if self._spill is not None:
            self._spill.append(change)
            return
        self._changes.append(change)
        self._size += change_bytes(change, size)
        if self._size > self._spill_bytes:
            self._start_spill()

    def extend(self, changes: Sequence[Change], size: int) -> None:
        """Add captured changes of one relation, at least one. ``size``: bytes of their messages. See ``change``."""
        if self._begin is None:
            raise DecodeError("changes without a begin")
        if self._spill is not None:
            for change in changes:
                self._spill.append(change)
            return
        self._changes += changes
        rows = len(changes) + len([change for change in changes if change.old is not None])
        self._size += CHANGE_BYTES * len(changes) + CELL_BYTES * len(changes[0].relation.columns) * rows + size
        if self._size > self._spill_bytes:
            self._start_spill()

    def _start_spill(self) -> None:
        spill = self._new_spill()
        for earlier in self._changes:
            spill.append(earlier)
        self._spill = spill
        self._changes = []
        self._size = 0

    def control(self, change: Change, size: int = 0) -> None:
        """Add a change of one of walstream's own tables. Raises DecodeError without a Begin."""
        if self._begin is None:
            raise DecodeError("a change without a begin")
        self._control.append(change)
        self._beside += change_bytes(change, size)

    def message(self, message: Message) -> None:
        """Add a transactional logical message. Raises DecodeError without a Begin."""
        if self._begin is None:
            raise DecodeError("a transactional message without a begin")
        self._messages.append(message)
        self._beside += CHANGE_BYTES + len(message.content)

    def commit(self, record: Commit) -> tuple[Transaction, bool]:
        """End the transaction. Returns it, and whether its changes lie in a spill. Raises DecodeError without a Begin.

        The spill may still have to write what it holds back: raises OSError.
        """
        if self._begin is None:
            raise DecodeError("a commit without a begin")
        spill = self._spill
        transaction = Transaction(
            xid=self._begin.xid,
            commit_lsn=Lsn(record.lsn),
            commit_at=self._begin.commit_at,
            changes=self._changes if spill is None else spill.changes(),
            control=tuple(self._control),
            messages=tuple(self._messages),
            size=CHANGE_BYTES + self._size + self._beside,
        )
        self.reset()
        return transaction, spill is not None


def change_bytes(change: Change, size: int) -> int:
    """Memory that a change keeps resident, about. ``size``: bytes of the message that it came in."""
    cells = (0 if change.new is None else len(change.new)) + (0 if change.old is None else len(change.old))
    return CHANGE_BYTES + CELL_BYTES * cells + size
