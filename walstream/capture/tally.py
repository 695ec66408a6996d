"""What each row of the plan has let through: counted while a transaction is read, valid once it is committed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from walstream.capture.plan import Admission, Plan

FAULTS_TOLD_MAX: Final = 5
"""Of a wildcard's faults, which may be one per table."""


class Captured(msgspec.Struct):
    """``changes``: how many. ``latest``: newest commit that had one of them, in µs since the Unix epoch."""

    changes: int = 0
    latest: int = 0


class Tally:
    """Captured changes by the id of the plan's row.

    Whoever admits a change calls ``touch`` if the admission's ``pending`` is 0, and adds 1 to it: no more than that is
    done for each change. ``commit`` or ``forget`` ends each transaction.
    """

    def __init__(self) -> None:
        self._captured: dict[str, Captured] = {}
        self._touched: list[Admission] = []

    def touch(self, admission: Admission) -> None:
        """The transaction's first change that this admission lets through."""
        self._touched.append(admission)

    def commit(self, at: int) -> None:
        """The transaction is committed. ``at``: when, in µs since the Unix epoch."""
        for admission in self._touched:
            captured = self._captured.get(admission.row_id)
            if captured is None:
                captured = self._captured[admission.row_id] = Captured()
            captured.changes += admission.pending
            captured.latest = max(captured.latest, at)
            admission.pending = 0
        self._touched.clear()

    def forget(self) -> None:
        """The transaction was cut off, or has been counted before."""
        for admission in self._touched:
            admission.pending = 0
        self._touched.clear()

    def __getitem__(self, row_id: str) -> Captured:
        """Of one row; zeros for a row that has captured nothing."""
        return self._captured.get(row_id) or Captured()

    def retain(self, row_ids: Iterable[str]) -> None:
        """Forget all rows but these: the plan has changed."""
        kept = set(row_ids)
        self._captured = {row_id: captured for row_id, captured in self._captured.items() if row_id in kept}


def errors(plan: Plan) -> dict[str, str]:
    """By the row's id: what of it cannot be done, as far as is known; rows without a fault are left out."""
    messages: dict[str, list[str]] = {}
    for fault in plan.current_faults:
        messages.setdefault(fault.row_id, []).append(fault.message)
    return {row_id: _shortened(texts) for row_id, texts in messages.items()}


def _shortened(texts: list[str]) -> str:
    more = len(texts) - FAULTS_TOLD_MAX
    return "; ".join(texts[:FAULTS_TOLD_MAX]) + (f"; and {more} more" if more > 0 else "")
