"""What this daemon reports of itself: its row of ``realtime.nodes``, for the command line and for other nodes.

The table is unlogged: the row costs no WAL, is gone after a crash of the server, and is written anew with the next
report. What the columns mean is told in schema/README.md.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

import structlog
import trio
from psycopg2 import sql

from walstream.capture.plan import Plan
from walstream.capture.tally import Tally, errors
from walstream.errors import DatabaseRefused, WalstreamError
from walstream.shell.database.counts import NODE_SECONDS
from walstream.shell.database.postgres import PgConnection
from walstream.shell.health import Health
from walstream.telemetry.log import NODE_UNREPORTED

REPORT_SECONDS_MAX: Final = NODE_SECONDS / 3
"""Two reports may be lost before a node counts as gone."""

PATIENCE_SECONDS: Final = 2.0
"""For one report: its connection is needed for joins, too, and who stops the daemon waits for a report under way."""

GOODBYE_SECONDS: Final = 1.0
"""For taking the row away at the end, which nobody should have to wait for."""

FORGET_SECONDS: Final = 24 * 3600
"""A row that was not touched for so long is of a daemon that was killed: it goes. Until then it tells what was last."""

# One statement, one trip. Nothing here waits for a disk or a standby: only logged tables make a commit do that.
_REPORT = """
with gone as (
    delete from {nodes}
     where last_seen_at < now() - make_interval(secs => %(forget_seconds)s)
       and node_id <> %(node_id)s
)
insert into {nodes} as n (node_id, address, version, pid, slot, clients, status, started_at, last_seen_at)
values (%(node_id)s, %(address)s, %(version)s, %(pid)s, %(slot)s, %(clients)s, %(status)s::jsonb, %(started_at)s, now())
on conflict (node_id) do update
   set address = excluded.address, version = excluded.version, pid = excluded.pid, slot = excluded.slot,
       clients = excluded.clients, status = excluded.status, started_at = excluded.started_at,
       last_seen_at = excluded.last_seen_at
"""

# Somebody may have taken the address over already: his row stays.
_GOODBYE = """
delete from {nodes} where node_id = %(node_id)s and pid = %(pid)s and started_at = %(started_at)s
"""

T = TypeVar("T")

log = structlog.get_logger()


class Statements(Protocol):
    """What runs SQL for us: ``postgres.Database``."""

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` with a connection in autocommit. Raises DatabaseUnreachable or DatabaseRefused."""
        ...


class NodeReport:
    """Reports every ``seconds``. ``captured``: the plan in force and what its rows have let through.

    ``address`` and ``slot`` are for people. Times are this daemon's for ``started_at`` and in the status, the
    server's for ``last_seen_at``.
    """

    def __init__(
        self,
        database: Statements,
        health: Health,
        captured: Callable[[], tuple[Plan, Tally]],
        *,
        schema: str,
        slot: str,
        address: str,
        seconds: float,
    ) -> None:
        self._database = database
        self._health = health
        self._captured = captured
        self._seconds = min(seconds, REPORT_SECONDS_MAX)
        nodes = sql.Identifier(schema, "nodes")
        self._report_statement = sql.SQL(_REPORT).format(nodes=nodes)
        self._goodbye_statement = sql.SQL(_GOODBYE).format(nodes=nodes)
        self._facts: Mapping[str, object] = {
            "node_id": health.node,
            "address": address,
            "version": health.version,
            "pid": os.getpid(),
            "slot": slot,
            "started_at": dt.datetime.now(dt.UTC),
            "forget_seconds": FORGET_SECONDS,
        }
        self._has_row = False
        self._trouble = ""

    async def run(self) -> None:
        """Report for ever; a database that is away is asked again. Cancelling it takes the row away."""
        try:
            while True:
                await self._report()
                await trio.sleep(self._seconds)
        finally:
            await self._say_goodbye()

    def status(self) -> dict[str, object]:
        """What goes into ``nodes.status``, as it is now."""
        plan, tally = self._captured()
        return {"subscriptions": subscriptions(plan, tally), "health": self._health.health()}

    async def _report(self) -> None:
        values = {**self._facts, "clients": self._health.clients(), "status": json.dumps(self.status())}
        try:
            # Not to be cancelled: it might be written when the goodbye has been said.
            with trio.fail_after(PATIENCE_SECONDS, shield=True):
                await self._database.run(lambda connection: _execute(connection, self._report_statement, values))
        except (WalstreamError, trio.TooSlowError) as error:
            self._failed(error)
        else:
            self._has_row, self._trouble = True, ""

    def _failed(self, error: WalstreamError | trio.TooSlowError) -> None:
        """Say once what somebody has to repair. That the database is away is said by who proves the way to it."""
        if not isinstance(error, DatabaseRefused):
            return
        trouble = error.reason or error.code
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(NODE_UNREPORTED, error=str(error), code=trouble, node=self._health.node)

    async def _say_goodbye(self) -> None:
        if not self._has_row:
            return
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            try:
                await self._database.run(lambda connection: _execute(connection, self._goodbye_statement, self._facts))
            except WalstreamError as error:
                log.debug(NODE_UNREPORTED, error=str(error), node=self._health.node)


def subscriptions(plan: Plan, tally: Tally) -> dict[str, dict[str, object]]:
    """By the row's id: ``events``, and ``last_event_at`` and ``error`` where there are such."""
    broken = errors(plan)
    told: dict[str, dict[str, object]] = {}
    for row in plan.rows:
        captured = tally[row.id]
        about: dict[str, object] = {"events": captured.changes}
        if captured.latest:
            about["last_event_at"] = iso(captured.latest)
        if row.id in broken:
            about["error"] = broken[row.id]
        told[row.id] = about
    return told


def iso(microseconds: int) -> str:
    """A time as text that sorts as times do. ``microseconds``: since the Unix epoch."""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _execute(connection: PgConnection, statement: sql.Composed, values: Mapping[str, object]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
