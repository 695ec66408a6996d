"""Changes of what is captured, in the order of commits: those inside the window, and those the stream has yet to reach.

What is captured is ``capture``'s; who is told that it has changed is decided outside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence
from typing import Final, NamedTuple

from walstream.history.resume import POISON_SKIPPED, PlanChange
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Transaction

ANY_TABLE: Final = frozenset({("*", "*")})
CHANGES_MAX: Final = 1000
"""That are remembered while nothing leaves the window; of more the oldest is about any table."""


class Anew(NamedTuple):
    """Tables, "*" for any, that are captured anew: what was committed before ``position`` may be missing.

    ``writers``: xids of transactions that may have begun to write to them before, and commit afterwards.
    """

    tables: frozenset[tuple[str, str]]
    position: int
    writers: frozenset[int] = frozenset()


class Reached(NamedTuple):
    """The stream has got to it. ``audience``: who was concerned when it became known."""

    change: PlanChange
    audience: Collection[Hashable]


class PlanLog:
    """See the module. What has left the ring's window is forgotten."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._changes: deque[PlanChange] = deque()
        self._expected: list[tuple[Anew, Collection[Hashable]]] = []
        self._writers: dict[int, tuple[Anew, Collection[Hashable]]] = {}  # by xid: reached, but for what it commits

    @property
    def changes(self) -> Sequence[PlanChange]:
        """Changes that are younger than the oldest transaction in the window."""
        while self._changes and self._changes[0].commit_lsn <= self._ring.floor:
            self._changes.popleft()
        return self._changes

    def clear(self) -> None:
        """What was known has no continuation."""
        self._changes.clear()
        self._expected.clear()
        self._writers.clear()

    def add(self, change: PlanChange) -> None:
        """Take note of a change."""
        changes = self._changes
        changes.append(change)
        if len(changes) > CHANGES_MAX:
            changes.popleft()
            changes[0] = PlanChange(changes[0].commit_lsn, ANY_TABLE)

    def left_out(self, record_lsn: int, table: tuple[str, str] | None) -> PlanChange:
        """Something of the transaction whose commit record begins there, 0 if unknown, could not be read.

        ``table``: what it was about, None if nobody knows. It was committed after all that was read before it.
        """
        at = Lsn(max(record_lsn, self._ring.newest) + 1)  # its end lies beyond that
        change = PlanChange(at, ANY_TABLE if table is None else frozenset({table}), POISON_SKIPPED)
        self.add(change)
        self._ring.told = at
        return change

    def expect(self, anew: Anew, audience: Collection[Hashable]) -> None:
        """The stream may be older than this; see ``Reached``."""
        self._expected.append((anew, audience))

    def reached(self, transaction: Transaction) -> list[Reached]:
        """What lies before this commit, or is known of it. Whoever is told goes on with this very transaction."""
        if not self._expected and not self._writers:
            return []
        commit_lsn, xid = transaction.commit_lsn, transaction.xid
        due = [each for each in self._expected if each[0].position < commit_lsn]
        self._expected = [each for each in self._expected if each not in due]
        late = [self._writers.pop(xid)] if xid in self._writers else []
        self._writers.update({writer: each for each in due for writer in each[0].writers - {xid}})
        found = [Reached(PlanChange(Lsn(commit_lsn - 1), anew.tables), audience) for anew, audience in due + late]
        if found:
            self._ring.told = Lsn(commit_lsn - 1)
            for each in found:
                self.add(each.change)
        return found
