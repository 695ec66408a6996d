"""Whether a subscriber's position has its continuation in the ring: everything after it, or a reason why not.

A position names a commit by its end and its xid: an end that another commit took after a crash is recognised. What is
promised is in docs/discussion/resume.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from walstream.history.position import Position
from walstream.history.ring import EVERYTHING, Ring
from walstream.lsn import Lsn

TOO_OLD: Final = "too_old"
OTHER_CLUSTER: Final = "other_cluster"
PLAN_CHANGED: Final = "plan_changed"
SLOT_LOST: Final = "slot_lost"
POISON_SKIPPED: Final = "poison_skipped"


class Start(NamedTuple):
    """Where a subscriber goes on: with the first change after this one, in the order of commits.

    ``xid``: of its transaction, 0 where any will do.
    """

    commit_lsn: Lsn
    ordinal: int
    xid: int = 0

    def covers(self, commit_lsn: int, ordinal: int) -> bool:
        """Whether the subscriber has this change."""
        return (commit_lsn, ordinal) <= (self.commit_lsn, self.ordinal)


class PlanChange(NamedTuple):
    """A commit that changed what is captured, or a place where something was left out.

    ``tables``: (schema, table) as ``Plan`` names them, "*" for any. ``reason``: in the word that clients are told.
    """

    commit_lsn: Lsn
    tables: frozenset[tuple[str, str]]
    reason: str = PLAN_CHANGED

    def concerns(self, position: int, wished: tuple[str, str]) -> bool:
        """Whether it comes after that commit end and is about what is ``wished`` (schema and table, "*" for any)."""
        return self.commit_lsn > position and any(_overlap(table, wished) for table in self.tables)


def resume(
    ring: Ring,
    position: Position,
    server_lsn: Lsn,
    plan_changes: Iterable[PlanChange],
    wished: tuple[str, str],
) -> Start | str:
    """Where to go on, or the reason of a gap. ``server_lsn``: how far the server has flushed its WAL.

    ``wished``: the schema and table of a subscription, "*" for any. A position beyond ``server_lsn`` is of a history
    that the server no longer has (a restored backup). One without a xid stands for all up to its commit end.
    """
    if not ring.lineage.has(position.cluster, position.commit_lsn) or position.commit_lsn > server_lsn:
        return OTHER_CLUSTER
    if position.commit_lsn < ring.floor:
        return (position.commit_lsn < ring.start and ring.lost) or TOO_OLD
    if position.commit_lsn == ring.floor and position.xid and position.ordinal < ring.floor_ordinal:
        return TOO_OLD  # it may be in the midst of a transaction whose rest has gone
    for change in plan_changes:
        if change.concerns(position.commit_lsn, wished):
            return change.reason
    if not position.xid:
        return Start(position.commit_lsn, EVERYTHING)
    if ring.floor < position.commit_lsn <= ring.newest:
        # A commit that was passed by had nothing in it; who was told of it had another plan, or another history.
        found = ring.by_commit(position.commit_lsn)
        if found is None:
            return PLAN_CHANGED
        if found.xid != position.xid:
            return OTHER_CLUSTER
    return Start(position.commit_lsn, position.ordinal, position.xid)


def _overlap(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return all("*" in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def standing(ring: Ring, commit_lsn: int) -> Position:
    """A position for who has everything up to that commit end."""
    return Position(ring.cluster, 0, Lsn(commit_lsn), 0)
