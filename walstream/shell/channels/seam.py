"""The seam between what is replayed to one member and what is live: nothing missing, nothing twice.

What comes live is kept from before the database is asked; what of it the replay had, or left out for being older than
its window, is told by the snapshot of the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from walstream.history.visibility import is_live, settled
from walstream.model import Transaction
from walstream.rooms import Broadcast
from walstream.shell.channels.message_store import Replayed


class Live(NamedTuple):
    """A message as it came. ``transaction``: the one that stored it, where the WAL told."""

    broadcast: Broadcast
    transaction: Transaction | None


class Seam:
    """One member's replay. ``answer`` comes once; before it everything that comes live is to be kept."""

    __slots__ = ("_held", "_ids", "_replayed")

    def __init__(self) -> None:
        self._held: list[Live] = []
        self._replayed: Replayed | None = None
        self._ids: frozenset[str] = frozenset()

    def keep(self, live: Live) -> None:
        """Something came before the member is inside."""
        self._held.append(live)

    def answer(self, replayed: Replayed) -> None:
        """What the database has."""
        self._replayed = replayed
        self._ids = frozenset(broadcast.id for broadcast in replayed.messages)

    def messages(self) -> Iterator[tuple[Broadcast, bool]]:
        """What the member gets as it enters, in order; True for what is replayed."""
        if self._replayed is not None:
            yield from ((broadcast, True) for broadcast in self._replayed.messages)
        yield from ((live.broadcast, False) for live in self._held if not self.had(live))
        self._held = []

    def had(self, live: Live) -> bool:
        """Whether the replay had a message, or left it out for newer ones."""
        broadcast, transaction = live
        replayed = self._replayed
        if broadcast.seq is None or replayed is None:
            return False
        if broadcast.id in self._ids:
            return True
        if not replayed.is_full:
            return False
        if transaction is not None:
            return not is_live(transaction, replayed.snapshot)
        # From a node's own hands: its transaction was a short one, so that the order of sending is that of committing.
        oldest = replayed.messages[0].seq
        return oldest is not None and broadcast.seq < oldest

    def is_over(self, live: Live) -> bool:
        """Whether all that follows a message is new."""
        transaction, replayed = live.transaction, self._replayed
        return transaction is not None and replayed is not None and settled(transaction, replayed.snapshot)
