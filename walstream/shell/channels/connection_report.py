"""The WebSockets of this node in ``realtime.connections``, for the command line and for whoever counts them.

The table is unlogged: after a crash of the server it is empty, and is filled again. What the columns mean is told in
schema/README.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import trio
from psycopg2 import sql

from walstream.shell.channels.attempts import Attempts, Statements, keep_writing
from walstream.shell.database.counts import NODE_SECONDS
from walstream.shell.database.postgres import PgConnection
from walstream.telemetry.log import CONNECTIONS_UNREPORTED

PAUSE_SECONDS: Final = 1.0
"""Between writes: who comes and goes meanwhile is not written."""

REPORT_SECONDS_MAX: Final = 30.0
FRESH_SECONDS: Final = 60.0
"""``last_seen_at`` is written again when it is so old, also where nothing else is new."""

SWEEP_SECONDS: Final = 30.0
STALE_SECONDS: Final = 300
"""Rows of no node that nobody touched for so long become disconnected."""

FORGET_SECONDS: Final = 24 * 3600
BATCH_ROWS: Final = 500
USER_BYTES_MAX: Final = 2000
"""An index of PostgreSQL holds little more; a longer name is left out."""

AGENT_LENGTH: Final = 300

_WRITE = """
insert into {connections} as c
       (connection_id, user_id, status, connected_at, last_seen_at, metadata, node_id)
select g.connection_id, g.user_id, 'connected', to_timestamp(g.connected_at),
       now() - make_interval(secs => g.quiet), g.metadata::jsonb, %(node)s
  from unnest(%(ids)s::text[], %(users)s::text[], %(since)s::float8[], %(quiet)s::float8[], %(metas)s::text[])
       as g (connection_id, user_id, connected_at, quiet, metadata)
on conflict (connection_id) do update
   set user_id = excluded.user_id, status = excluded.status, last_seen_at = excluded.last_seen_at,
       metadata = excluded.metadata, node_id = excluded.node_id
"""
_END = """
update {connections} set status = 'disconnected', last_seen_at = now()
 where connection_id = any(%(ids)s::text[]) and status = 'connected'
"""
_OURS = "select connection_id from {connections} where node_id = %(node)s and status = 'connected'"
_GOODBYE = """
update {connections} set status = 'disconnected', last_seen_at = now() where node_id = %(node)s and status = 'connected'
"""
# One node at a time sweeps; the others need not wait for it.
_SWEEP = """
with mine as materialized (
    select pg_try_advisory_xact_lock(hashtextextended('walstream connections ' || %(schema)s, 0)) as held
), dead as (
    update {connections} as c
       set status = 'disconnected'
     where (select held from mine)
       and c.node_id is distinct from %(node)s and c.status = 'connected'
       and case when c.node_id <> ''
           then not exists (
               select from {nodes} as n
                where n.node_id = c.node_id and n.last_seen_at > now() - make_interval(secs => %(lost)s)
           )
           else c.last_seen_at < now() - make_interval(secs => %(stale)s)
       end
    returning 1
), forgotten as (
    delete from {connections}
     where (select held from mine)
       and status = 'disconnected' and last_seen_at < now() - make_interval(secs => %(forget)s)
    returning 1
)
select (select count(*) from dead), (select count(*) from forgotten)
"""


class ConnectionFacts(NamedTuple):
    """What is known of an open WebSocket.

    ``connected_at``: Unix seconds. ``topics``: how many it has joined. ``queued_bytes``: what it has not read yet.
    ``quiet_seconds``: since anything was heard of it, answers to pings included.
    """

    user_id: str | None
    connected_at: float
    address: str = ""
    user_agent: str = ""
    vsn: str = ""
    topics: int = 0
    queued_bytes: int = 0
    quiet_seconds: float = 0.0


class _Written(NamedTuple):
    facts: ConnectionFacts  # without what changes by itself
    at: float


class ConnectionReport:
    """Keeps this node's rows as its connections are. ``seconds``: between looks at all of them, 30 at most.

    ``node_id``: as in ``realtime.nodes``. All methods but ``run`` are synchronous. Memory is bounded by the connections
    that are open, and those that were when the database was seen last.
    """

    def __init__(self, database: Statements, schema: str, node_id: str, seconds: float = 15.0) -> None:
        self._attempts = Attempts(database, CONNECTIONS_UNREPORTED, node_id)
        self._sweeping = Attempts(database, CONNECTIONS_UNREPORTED, node_id)
        self._statements = _Statements(schema, node_id)
        self._seconds = min(seconds, REPORT_SECONDS_MAX)
        self._look_at = 0.0
        self._open: dict[str, Callable[[], ConnectionFacts]] = {}
        self._written: dict[str, _Written | None] = {}  # None: there, with other values
        self._changed: dict[str, None] = {}

    def opened(self, connection_id: str, facts: Callable[[], ConnectionFacts]) -> None:
        """A connection is there. ``facts`` is asked for them as they are now, until it is closed; must not raise."""
        self._open[connection_id] = facts
        self._changed[connection_id] = None

    def closed(self, connection_id: str) -> None:
        """It is gone. One that is unknown is no error."""
        if self._open.pop(connection_id, None) is not None:
            self._changed[connection_id] = None

    async def run(self) -> None:
        """Report until cancelled, however long the database is away; then sets this node's rows disconnected."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_writing, self._write, PAUSE_SECONDS)
                nursery.start_soon(self._sweep)
        finally:
            await self._attempts.last(self._statements.goodbye)

    async def _write(self) -> bool:
        if trio.current_time() >= self._look_at or self._attempts.has_failed:
            ours = await self._attempts.batch(self._statements.ours)
            if ours is None:
                return False
            self._found(ours)
            await self._look()
            self._look_at = trio.current_time() + self._seconds
        for _ in range(len(self._changed)):
            rows, gone = self._pending()
            if not rows and not gone:
                break
            if await self._attempts.batch(functools.partial(self._statements.write, rows=rows, gone=gone)) is None:
                return False
            self._wrote(rows, gone)
        return True

    def _found(self, ours: set[str]) -> None:
        """Rows of an earlier boot end; rows that a crash or somebody else took away are written anew."""
        for connection_id in self._written.keys() - ours:
            del self._written[connection_id]
            self._changed[connection_id] = None
        for connection_id in ours - self._written.keys():
            self._written[connection_id] = None
            self._changed[connection_id] = None

    async def _look(self) -> None:
        """See of whom there is something new to say."""
        for number, (connection_id, ask) in enumerate(list(self._open.items()), 1):
            if number % BATCH_ROWS == 0:
                await trio.lowlevel.checkpoint()
            written = self._written.get(connection_id)
            if connection_id not in self._open:
                continue
            if (
                written is None
                or trio.current_time() - written.at >= FRESH_SECONDS
                or written.facts != ask()._replace(quiet_seconds=0.0)
            ):
                self._changed[connection_id] = None

    def _pending(self) -> tuple[dict[str, ConnectionFacts], list[str]]:
        rows: dict[str, ConnectionFacts] = {}
        gone: list[str] = []
        for connection_id in tuple(self._changed):
            ask = self._open.get(connection_id)
            if ask is not None:
                rows[connection_id] = ask()
            elif connection_id in self._written:
                gone.append(connection_id)
            else:
                del self._changed[connection_id]
            if len(rows) + len(gone) == BATCH_ROWS:
                break
        return rows, gone

    def _wrote(self, rows: dict[str, ConnectionFacts], gone: list[str]) -> None:
        now = trio.current_time()
        for connection_id, facts in rows.items():
            self._written[connection_id] = _Written(facts._replace(quiet_seconds=0.0), now)
            if connection_id in self._open:
                self._changed.pop(connection_id, None)
        for connection_id in gone:
            self._written.pop(connection_id, None)
            self._changed.pop(connection_id, None)

    async def _sweep(self) -> None:
        while True:
            await self._sweeping.sweep(self._statements.sweep)
            await trio.sleep(SWEEP_SECONDS)


class _Statements:
    """The statements, each a function of a connection; they block and raise psycopg2.Error."""

    def __init__(self, schema: str, node: str) -> None:
        names = {table: sql.Identifier(schema, table) for table in ("connections", "nodes")}
        self._node = node
        self._schema = schema
        self._write, self._end, self._ours, self._goodbye, self._sweep = (
            sql.SQL(statement).format(**names) for statement in (_WRITE, _END, _OURS, _GOODBYE, _SWEEP)
        )

    def write(self, connection: PgConnection, rows: dict[str, ConnectionFacts], gone: Sequence[str]) -> bool:
        """Rows in, and others disconnected."""
        if rows:
            facts = rows.values()
            self._run(
                connection,
                self._write,
                ids=list(rows),
                users=[_user(fact.user_id) for fact in facts],
                since=[fact.connected_at for fact in facts],
                quiet=[max(0.0, fact.quiet_seconds) for fact in facts],
                metas=[_metadata(fact) for fact in facts],
            )
        if gone:
            self._run(connection, self._end, ids=list(gone))
        return True

    def ours(self, connection: PgConnection) -> set[str]:
        """Which of our rows are connected."""
        return {connection_id for (connection_id,) in self._run(connection, self._ours)}

    def goodbye(self, connection: PgConnection) -> bool:
        """Nobody is connected any more."""
        self._run(connection, self._goodbye)
        return True

    def sweep(self, connection: PgConnection) -> tuple[Any, ...]:
        """Rows that became disconnected because their node is gone; rows forgotten."""
        values = {"schema": self._schema, "lost": NODE_SECONDS, "stale": STALE_SECONDS, "forget": FORGET_SECONDS}
        return self._run(connection, self._sweep, **values)[0]

    def _run(self, connection: PgConnection, statement: sql.Composed, **values: object) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, {"node": self._node, **values})
            return cursor.fetchall() if cursor.description else []


def _user(user_id: str | None) -> str | None:
    storable = (user_id or "").replace("\0", "")
    return storable if storable and len(storable.encode()) <= USER_BYTES_MAX else None


def _metadata(facts: ConnectionFacts) -> str:
    told = {
        "address": facts.address,
        "user_agent": facts.user_agent.replace("\0", "")[:AGENT_LENGTH],
        "vsn": facts.vsn,
        "topics": facts.topics,
        "lag_bytes": facts.queued_bytes,
    }
    return msgspec.json.encode(told).decode()
