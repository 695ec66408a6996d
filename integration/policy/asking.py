"""A judge over a real PostgreSQL, asked and waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from integration.fixtures.postgres import TestDatabase
from tests.support import run
from walstream.lsn import Lsn
from walstream.model import Catalog, Column, Relation, Row, Transaction
from walstream.policy.model import Ask, Viewer
from walstream.shell.database.catalog import load_types
from walstream.shell.database.postgres import Database, connection
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.judge import SESSIONS, Judge, Verdict

T = TypeVar("T")

SECONDS = 30
LONG_AGO = Transaction(xid=3, commit_lsn=Lsn(1), commit_at=0, changes=())
"""A transaction that every snapshot sees."""


class Asking:
    """A running judge. ``doubts``: what it has counted."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.doubts = judge.doubts
        self._answered = trio.Event()
        judge.on_answers = self._answers

    def _answers(self) -> None:
        self._answered.set()
        self._answered = trio.Event()

    async def until(self, verdicts: Sequence[Verdict]) -> list[bool]:
        """The answers, once all are there."""
        with trio.fail_after(SECONDS):
            while any(verdict.answer is None for verdict in verdicts):
                await self._answered.wait()
        return [bool(verdict.answer) for verdict in verdicts]

    async def visible(
        self, viewer: Viewer, ask: Ask, relation: Relation, rows: Sequence[Row], *, is_old: bool = False
    ) -> list[bool]:
        """Which of the rows the viewer may see."""
        verdicts = [self.judge.ask(viewer, ask, LONG_AGO, relation, row, is_old=is_old) for row in rows]
        return await self.until(verdicts)

    def counted(self) -> dict[str, int]:
        """Rows in doubt by reason."""
        return {doubt.reason: doubt.rows for doubt in self.doubts}


def asking(dsn: str, work: Callable[[Asking], Awaitable[T]], catalog: Catalog | None = None) -> T:
    """Run ``work`` beside a judge."""

    async def main() -> T:
        database = Database(dsn, "walstream (policies)", size=SESSIONS + 1)
        judge = Judge(database, catalog or Catalog(), Doubts())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge.run)
            answer = await work(Asking(judge))
            nursery.cancel_scope.cancel()
        await database.aclose()
        return answer

    return run(main)


def relation_of(database: TestDatabase, table: str, *columns: str) -> tuple[Relation, Catalog]:
    """A table of the schema public as its rows in the WAL name it, and the types of its columns."""
    found = database.query(
        "select a.attname, a.atttypid::int8, t.typname from pg_attribute a join pg_type t on t.oid = a.atttypid"
        " where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum",
        (f'public."{table}"',),
    )
    catalog = Catalog()
    with connection(database.dsn, "facts") as facts:
        catalog.load(types=load_types(facts, [oid for _, oid, _ in found]))
    listed = tuple(Column(*column) for column in found if not columns or column[0] in columns)
    return Relation("public", table, listed), catalog
