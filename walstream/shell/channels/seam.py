"""The seam between what is replayed to one member and what is live: nothing missing, nothing twice.

What comes live is kept from before the database is asked; what of it the replay had, or left out for being older than
its window, is told by the snapshot of the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from walstream.history.visibility import is_live, settled
from walstream.model import Snapshot, Transaction
from walstream.rooms import Broadcast
from walstream.shell.channels.message_store import Replayed


class Live(NamedTuple):
    """A message as it came. ``transaction``: the one that stored it, where the WAL told."""

    broadcast: Broadcast
    transaction: Transaction | None


class Seam:
    """One member's replay. ``answer`` comes once; before it everything that comes live is to be kept.

    ``began``: the clock of whoever made it.
    """

    __slots__ = ("_held", "_ids", "_messages", "_oldest", "_snapshot", "began")

    def __init__(self, began: float) -> None:
        self.began = began
        self._held: list[Live] = []
        self._messages: list[Broadcast] = []
        self._ids: frozenset[str] = frozenset()
        self._snapshot: Snapshot | None = None
        self._oldest: int | None = None  # of the window, where older messages were left out

    def keep(self, live: Live) -> None:
        """Something came before the member is inside."""
        self._held.append(live)

    def answer(self, replayed: Replayed) -> None:
        """What the database has."""
        self._messages = replayed.messages
        self._snapshot = replayed.snapshot
        self._ids = frozenset(broadcast.id for broadcast in replayed.messages)
        self._oldest = replayed.messages[0].seq if replayed.is_full else None

    def messages(self) -> Iterator[tuple[Broadcast, bool]]:
        """What the member gets as it enters, in order; True for what is replayed. Nothing of it is kept."""
        replayed, self._messages = self._messages, []
        held, self._held = self._held, []
        yield from ((broadcast, True) for broadcast in replayed)
        yield from ((live.broadcast, False) for live in held if not self.had(live))

    def had(self, live: Live) -> bool:
        """Whether the replay had a message, or left it out for newer ones."""
        broadcast, transaction = live
        if broadcast.seq is None or self._snapshot is None:
            return False
        if broadcast.id in self._ids:
            return True
        if self._oldest is None:
            return False
        if transaction is not None:
            return not is_live(transaction, self._snapshot)
        # From a node's own hands: its transaction was a short one, so that the order of sending is that of committing.
        return broadcast.seq < self._oldest

    def is_over(self, transaction: Transaction) -> bool:
        """Whether all that the WAL brings after this transaction is new."""
        return self._snapshot is not None and settled(transaction, self._snapshot)
