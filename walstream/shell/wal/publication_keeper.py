"""Keeps the publications equal to the plan while the daemon runs; only pgoutput reads through them.

`subscribe` alters them in its own transaction. After direct SQL, and for tables that come into being under a wildcard,
the daemon has to; what they hold is decided in ``publications``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import structlog
import trio

from walstream.capture.plan import Plan, SubscriptionRow
from walstream.errors import WalstreamError
from walstream.history.plan_log import Anew
from walstream.shell.database import publications
from walstream.shell.database.postgres import Database, PgConnection
from walstream.shell.database.publications import Name, Synced
from walstream.telemetry.log import PUBLICATIONS_BEHIND

LOOK_SECONDS: Final = 5.0
"""How long it may go unnoticed that a table is not published: one that only a wildcard names, for no plugin tells of
CREATE TABLE; one that was dropped and made anew; and a publication that was dropped before anything was written."""

TABLES_MAX: Final = 100_000
"""Tables that are remembered as published; those that were dropped since are among them."""

RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


class PublicationKeeper:
    """Alters the publications for one plan at a time. It rests while ``is_needed`` is false."""

    def __init__(self, database: Database, schema: str) -> None:
        self.is_needed = False
        self.on_made: Callable[[Collection[str]], object] = lambda names: None
        """Called when publications had been dropped and were made again: what was written meanwhile is in none."""
        self.on_anew: Callable[[Anew], object] = lambda anew: None
        """Called when tables were published that had not been: what was written to them before does not come."""
        self._database = database
        self._schema = schema
        self._plan: Plan | None = None
        self._published: tuple[SubscriptionRow, ...] | None = None
        self._tables: frozenset[int] = frozenset()  # a table that is dropped and made anew has another OID
        self._added: set[Name] = set()  # of which it is not known yet what was written before
        self._altering = trio.Lock()
        self._changed = trio.Event()
        self._said: frozenset[str] = frozenset()

    def use(self, plan: Plan) -> None:
        """The plan that ``run`` has to follow."""
        self._plan = plan
        self._changed.set()

    async def settle(self, plan: Plan, tables: Collection[int] = (), *, anew: bool = False) -> None:
        """Return when what ``plan`` captures is published, ``tables`` (OIDs) among it.

        ``anew``: look even if nothing has changed. What PostgreSQL refuses is tried again with every call. Raises
        WalstreamError where PostgreSQL cannot be asked.
        """
        if not self.is_needed:
            return
        async with self._altering:
            if anew or plan.rows != self._published or not self._tables.issuperset(tables):
                complete = await self._alter()
                self._published = plan.rows if complete else None
                known = self._tables if len(self._tables) < TABLES_MAX else frozenset()
                self._tables = known.union(tables)

    async def run(self) -> None:
        """Follow the plan, for ever. Cancelling it leaves the publications as they are."""
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._changed.wait()
            self._changed = trio.Event()
            if self._plan is None:
                continue
            try:
                await self.settle(self._plan, anew=True)
            except WalstreamError as error:
                self._say(error.message, error.repair)
                self._changed.set()
                await trio.sleep(RETRY_SECONDS)

    async def _alter(self) -> bool:
        """Returns whether all is published that should be."""
        synced, anew = await self._database.run(self._sync)
        if synced.made:
            self.on_made(synced.made)
        elif anew is not None:
            self.on_anew(anew)
        for statement, refusal in synced.missing:
            self._say(refusal, statement)
        if synced.complete:
            self._said = frozenset()
        return synced.complete

    def _sync(self, connection: PgConnection) -> tuple[Synced, Anew | None]:
        synced = publications.sync_publications(connection, self._schema)
        self._added |= set(synced.added)
        anew = publications.anew(connection, self._added) if self._added else None
        self._added.clear()
        return synced, anew

    def _say(self, error: str, repair: str) -> None:
        if error not in self._said:
            self._said |= {error}
            log.warning(PUBLICATIONS_BEHIND, error=error, repair=repair)
