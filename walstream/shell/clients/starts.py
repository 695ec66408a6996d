"""From where a join's changes come: its snapshot, or where its client was; and what the client is told of that.

Whether a single position has its continuation is decided in ``history.resume``; reading a snapshot's rows is
``snapshots``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from walstream.history.resume import PlanChange, resume, standing
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Snapshot
from walstream.shell.clients.join_check import Wish
from walstream.shell.delivery.pursuit import Beginning

GAP: Final = "Changes may be missing: read the tables again"
RESUMED: Final = "Going on where you were: what you missed comes first"


class Starts(NamedTuple):
    """``begins``: one per item; None: where its rows are read, which is to be done. Empty: everything is live at once.

    ``message`` and ``details`` are the ``system`` frame that goes out before anything else; no message, no frame.
    """

    begins: Sequence[Beginning | None] = ()
    message: str = ""
    details: Mapping[str, str] = {}


def find(
    wishes: Sequence[Wish], ring: Ring, snapshot: Snapshot, asked_at: int, plan_changes: Iterable[PlanChange]
) -> Starts:
    """Where a join with these items begins. ``asked_at``: the ring's next number when the snapshot was asked for.

    Of an item with ``since`` and ``snapshot`` the rows are read only if its position has no continuation.
    """
    changes, server_lsn = tuple(plan_changes), Lsn(snapshot.flush_lsn)
    begins: list[Beginning | None] = []
    reason = ""
    for wish in wishes:
        begin: Beginning | None = None if wish.item.snapshot else snapshot
        if wish.since is not None:
            start = resume(ring, wish.since, server_lsn, changes, (wish.schema, wish.table))
            if not isinstance(start, str):
                begin = start
            elif not wish.item.snapshot:
                reason = reason or start
        begins.append(begin)
    if reason:
        # Before whatever the snapshot does not see: who gets nothing at all may come back with this.
        position = str(standing(ring, ring.before_live(snapshot, asked_at)))
        begins = [None if begin is None else snapshot for begin in begins]
        details = {"event": "gap", "reason": reason, "position": position}
        return Starts(begins if None in begins else (), GAP, details)
    if None in begins:
        return Starts(begins)
    positions = [wish.since for wish in wishes if wish.since is not None]
    if not positions:
        return Starts()
    oldest = min(positions, key=lambda position: position[2:])
    return Starts(begins, RESUMED, {"event": "resumed", "position": str(oldest)})
