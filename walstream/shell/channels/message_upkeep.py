"""Keeps ``messages`` in order: partitions ahead, old ones dropped, and messages deleted when their time is over.

Any number of nodes may do it: one at a time does, the others pass.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from walstream.errors import WalstreamError
from walstream.shell.database import message_rows
from walstream.shell.database.postgres import Database
from walstream.telemetry.log import MESSAGES_UNKEPT

EXPIRY_SECONDS: Final = 60.0
"""Between looks for messages with a time of their own; readers do not see them from that time on anyway."""

AGE_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 30.0
BATCH: Final = 5000
PAUSE_SECONDS: Final = 0.05

log = structlog.get_logger()


class MessageUpkeep:
    """``run`` looks at once, then every minute and every hour."""

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._schema = schema

    async def run(self) -> None:
        """Look after the table until cancelled."""
        aged_at = -AGE_SECONDS
        while True:
            try:
                if trio.current_time() - aged_at >= AGE_SECONDS:
                    await self.age()
                    aged_at = trio.current_time()
                await self._delete(by_age=False)
            except WalstreamError as error:
                log.warning(MESSAGES_UNKEPT, code=error.code, error=error.message, repair=error.repair)
                await trio.sleep(RETRY_SECONDS)
            else:
                await trio.sleep(EXPIRY_SECONDS)

    async def age(self) -> None:
        """Partitions, and messages older than their channel keeps them. Raises WalstreamError."""
        await self._database.run(lambda connection: message_rows.maintain(connection, self._schema))
        await self._delete(by_age=True)

    async def _delete(self, *, by_age: bool) -> int:
        deleted = 0
        while True:
            count = await self._database.run(
                lambda connection: message_rows.delete_expired(connection, self._schema, BATCH, by_age=by_age)
            )
            deleted += count or 0
            if count is None or count < BATCH:
                return deleted
            await trio.sleep(PAUSE_SECONDS)
