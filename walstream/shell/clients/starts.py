"""From where a join's changes come: its snapshot, or where its client was; and what the client is told of that.

Whether a single position has its continuation is decided in ``history.resume``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from walstream.history.resume import PlanChange, Start, resume, standing
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Snapshot
from walstream.shell.clients.join_check import Wish

GAP: Final = "Changes may be missing: read the tables again"
RESUMED: Final = "Going on where you were: what you missed comes first"


class Starts(NamedTuple):
    """``starts``: one per item, to be handed to ``Fanout.resume``; None: everything begins at the snapshot.

    ``message`` and ``details`` are the ``system`` frame that goes out before any change; no message, no frame.
    """

    starts: Sequence[Start | None] | None = None
    message: str = ""
    details: Mapping[str, str] = {}


def find(
    wishes: Sequence[Wish], ring: Ring, snapshot: Snapshot, asked_at: int, plan_changes: Iterable[PlanChange]
) -> Starts:
    """Where a join with these items begins. ``asked_at``: the ring's next number when the snapshot was asked for."""
    positions = [wish.since for wish in wishes if wish.since is not None]
    if not positions:
        return Starts()
    changes, server_lsn = tuple(plan_changes), Lsn(snapshot.flush_lsn)
    starts: list[Start | None] = []
    for wish in wishes:
        start = resume(ring, wish.since, server_lsn, changes, (wish.schema, wish.table)) if wish.since else None
        if isinstance(start, str):
            # Before whatever the snapshot does not see: who gets nothing at all may come back with this.
            position = str(standing(ring, ring.before_live(snapshot, asked_at)))
            return Starts(None, GAP, {"event": "gap", "reason": start, "position": position})
        starts.append(start)
    oldest = min(positions, key=lambda position: position[2:])
    return Starts(starts, RESUMED, {"event": "resumed", "position": str(oldest)})
