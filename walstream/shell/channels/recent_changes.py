"""Changes of registered channels and members that the WAL has just brought, for answers that are older than them.

A commit is in the WAL before others see it: an answer of the database may lack what came already. Who asks, and who is
judged by it, is ``directory``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, MutableMapping
from typing import Final

import trio

from walstream.channel.registry import Membership, RegisteredChannel, Registry
from walstream.history.visibility import is_live
from walstream.model import Change, Operation, Snapshot, Transaction
from walstream.shell.database.channel_rows import Pair, channel_change, member_change

RECENT_SECONDS: Final = 60.0
RECENT_MAX: Final = 5000
"""How long, and how many changes, are kept."""


class RecentChanges:
    """Everything is synchronous."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, Transaction, tuple[Change, ...]]] = deque()
        self._count = 0

    def remember(self, transaction: Transaction, changes: tuple[Change, ...]) -> bool:
        """Keep changes for a while. False where others had to go for them that an answer under way may lack."""
        now = trio.current_time()
        self._recent.append((now, transaction, changes))
        self._count += len(changes)
        is_whole = True
        while self._recent and (self._count > RECENT_MAX or now - self._recent[0][0] > RECENT_SECONDS):
            at, _, dropped = self._recent.popleft()
            self._count -= len(dropped)
            is_whole = is_whole and now - at > RECENT_SECONDS
        return is_whole

    def since(self, snapshot: Snapshot, table: str, server_start: float | None) -> Iterator[Change]:
        """Changes of a table that the WAL has brought and the snapshot does not see, in their order."""
        for _, transaction, changes in self._recent:
            if is_live(transaction, snapshot, server_start):
                yield from (change for change in changes if change.relation.name == table)


def put(registry: Registry, change: Change) -> list[RegisteredChannel]:
    """Apply a change of ``channels``. Returns every version that it ends or begins."""
    if change.operation is Operation.TRUNCATE:
        gone = list(registry)
        registry.clear()
        return gone
    id_, channel = channel_change(change)
    before = registry.remove(id_) if channel is None else registry.put(channel)
    return [version for version in (before, channel) if version is not None]


def update(members: MutableMapping[Pair, Membership | None], change: Change) -> None:
    """Apply a change of ``channel_members`` to those pairs that are in ``members``."""
    if change.operation is Operation.TRUNCATE:
        members.update(dict.fromkeys(members))
        return
    ended, membership = member_change(change)
    if ended is not None and ended in members:
        members[ended] = None
    if membership is not None and (membership.channel_id, membership.user) in members:
        members[membership.channel_id, membership.user] = membership
