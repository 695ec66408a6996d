"""Whether ``subscriptions`` is still the table that the plan was loaded from; one that was made anew is loaded again.

The WAL tells of rows, not of tables: those of the old table are never deleted. What the rows mean is ``capture``'s.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog
import trio

from walstream.errors import WalstreamError
from walstream.shell.database import plan_source
from walstream.shell.database.postgres import Database
from walstream.shell.health import Health
from walstream.telemetry.log import PLAN_LOST, PLAN_RELOADED

LOOK_SECONDS: Final = 5.0

log = structlog.get_logger()


class Planned(Protocol):
    """Who captures by the plan."""

    plan_oid: int
    """Of the table that it was loaded from; 0 before the first stream."""

    async def reload(self) -> None:
        """Load it from the table of now. Raises WalstreamError."""
        ...


class PlanWatch:
    """Looks every ``LOOK_SECONDS``."""

    def __init__(self, database: Database, planned: Planned, health: Health, schema: str) -> None:
        self._database = database
        self._planned = planned
        self._health = health
        self._schema = schema

    async def run(self) -> None:
        """Look for ever; a database that is away is asked again."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        planned = self._planned
        try:
            oid = await self._database.run(lambda connection: plan_source.table_oid(connection, self._schema))
            if oid and planned.plan_oid not in (0, oid):
                await planned.reload()
                log.warning(PLAN_RELOADED, table=f"{self._schema}.{plan_source.TABLE}")
        except WalstreamError:
            return  # said by whoever needs the database, too
        if not oid and not self._health.plan_reason:
            table, repair = f"{self._schema}.{plan_source.TABLE}", "walstream init"
            log.warning(PLAN_LOST, table=table, repair=repair)
            self._health.plan_is(f"{table} is not there: what it said last goes on being captured ({repair})")
        elif oid:
            self._health.plan_is("")
