"""Bulk: transactions of nothing but INSERTs into one table of which everybody gets all, in one text per audience.

It says the same as ``Fanout`` says for each change, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from walstream.model import Operation, Relation
from walstream.protocol.changes import InsertRun
from walstream.router.binding import Binding
from walstream.router.index import Router
from walstream.shell.delivery.audience import Audience

AUDIENCES_MAX: Final = 4
RUNS_MAX: Final = 1000


class _Known(NamedTuple):
    """What was found, and what it was found from."""

    matched: Sequence[Binding] | None
    members: int
    runs: list[tuple[Audience, InsertRun]] | None


class InsertRuns:
    """Who gets every INSERT of a table, and in what text. ``by_binding``: the audiences of each binding's id."""

    def __init__(self, router: Router, by_binding: Mapping[int, Mapping[Audience, None]]) -> None:
        self._router = router
        self._by_binding = by_binding
        self._known: dict[Relation, _Known] = {}

    def of(self, relation: Relation, members: int) -> list[tuple[Audience, InsertRun]] | None:
        """None where that depends on the row or on the socket. ``members``: counts who comes and goes.

        None for many audiences, too: they share what ``_deliver`` renders. Kept until somebody comes or goes.
        """
        matched = self._router.everyone(relation, Operation.INSERT)
        known = self._known.get(relation)
        if known is not None and known.matched is matched and known.members == members:
            return known.runs
        if len(self._known) >= RUNS_MAX:
            self._known.clear()
        runs = self._plan(relation, matched) if matched else None
        self._known[relation] = _Known(matched, members, runs)
        return runs

    def _plan(self, relation: Relation, matched: Sequence[Binding]) -> list[tuple[Audience, InsertRun]] | None:
        wanted: dict[Audience, list[Binding]] = {}
        for binding in matched:
            for audience in self._by_binding.get(binding.id, ()):
                wanted.setdefault(audience, []).append(binding)
        if len(wanted) > AUDIENCES_MAX:
            return None
        runs = []
        for audience, bindings in wanted.items():
            columns = bindings[0].select
            if audience.shared or audience.joining or any(binding.select != columns for binding in bindings):
                return None
            prefix = audience.prefix(Operation.INSERT, tuple([binding.id for binding in bindings]))
            run = audience.key.shape.insert_run(relation, columns, prefix, audience.suffix)
            if run is None:
                return None
            runs.append((audience, run))
        return runs
