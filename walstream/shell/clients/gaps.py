"""Tells clients that changes may be missing: all, or those whom what is missing may concern.

What is missing is found by ``shell/wal``; how a join is told, and how it goes on, is in ``joins``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Protocol

import structlog

from walstream.history.plan_log import Anew
from walstream.history.resume import PLAN_CHANGED, PlanChange
from walstream.lsn import Lsn
from walstream.shell.clients.join_check import Wish
from walstream.shell.clients.joins import Joins
from walstream.telemetry.log import GAP_TOLD
from walstream.telemetry.metrics import Metrics

log = structlog.get_logger()


class History(Protocol):
    """What remembers, for those who come back, that something is missing."""

    def left_out(self, record_lsn: int, table: tuple[str, str] | None) -> PlanChange:
        """See ``PlanLog.left_out``."""
        ...

    def expect(self, anew: Anew, joins: Collection[Hashable]) -> None:
        """See ``PlanLog.expect``."""
        ...


class Gaps:
    """Counts and logs each gap, with the number of channels that were told."""

    def __init__(self, joins: Joins, history: History, metrics: Metrics) -> None:
        self._joins = joins
        self._history = history
        self._metrics = metrics

    def tell(
        self,
        reason: str,
        concerns: Callable[[Wish], bool] = lambda wish: True,
        besides: Collection[Hashable] = (),
    ) -> None:
        """Changes may be missing before what comes next. ``besides``: joins that are told, too."""
        told = self._joins.gap(reason, concerns, besides)
        if told:
            log.warning(GAP_TOLD, reason=reason, channels=told)
            self._metrics.gaps.labels(reason).inc(told)

    def left_out(self, record_lsn: Lsn, table: tuple[str, str] | None) -> None:
        """Something of the transaction whose commit record begins there could not be read; None: of any table."""
        change = self._history.left_out(record_lsn, table)
        self.tell(change.reason, _about(change))

    def captured_anew(self, anew: Anew) -> None:
        """Who is here now misses what was written before; whoever joins from now on does not."""
        change = PlanChange(Lsn(anew.position), anew.tables)
        concerned = self._joins.concerned(_about(change))
        self._history.expect(anew, concerned)

    def overtaken(self, change: PlanChange, joins: Collection[Hashable]) -> None:
        """Who went on from before it was told of what this process has read by a newer plan, or not at all."""
        self.tell(
            PLAN_CHANGED,
            lambda wish: wish.since is not None and change.concerns(wish.since.commit_lsn, (wish.schema, wish.table)),
            joins,
        )


def _about(change: PlanChange) -> Callable[[Wish], bool]:
    """Whether it is about what a wish names, whenever that began."""
    return lambda wish: change.concerns(0, (wish.schema, wish.table))
