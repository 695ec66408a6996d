"""Presence in the database: this node's rows of ``realtime.presence``, and what SQL and the command line say there.

What the rows should be is decided in ``channel.presence_rows``. Rows with an empty ``node_id`` are everybody's; each
node shows them to its clients. The table is unlogged: after a crash of the server it is empty, and is filled again.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2
import trio
from psycopg2 import sql

from walstream.channel.presence_rows import IDLE_SECONDS, PresenceRow, PresenceRows, RowKey
from walstream.rooms import PresenceEntry, RoomKey
from walstream.shell.channels.attempts import SPOILT, Attempts, Statements, keep_writing
from walstream.shell.database.counts import NODE_SECONDS
from walstream.shell.database.postgres import PgConnection
from walstream.shell.supervise import next_delay
from walstream.telemetry.log import PRESENCE_UNREPORTED

PAUSE_SECONDS: Final = 1.0
"""Between writes: what changes and changes back meanwhile is not written."""

CHECK_SECONDS: Final = 15.0
"""Between looks whether all our rows are still there."""

SWEEP_SECONDS: Final = 30.0
STALE_SECONDS: Final = 300
"""Rows of SQL and the command line that nobody touched for so long become offline."""

FRESH_SECONDS: Final = 100
"""``last_seen_at`` of who is there is never much older: others may clean up what is older than 300 s."""

FORGET_SECONDS: Final = 24 * 3600
"""Offline rows tell until then when somebody was seen last."""

BATCH_ROWS: Final = 500
OUTSIDE_PAUSE_SECONDS: Final = 0.25
OUTSIDE_ROWS: Final = 20_000
"""Of SQL and the command line: the newest ones."""

REREAD_SECONDS: Final = 60.0
"""Notifications may be lost, and a channel's type may change."""

# psycopg2 sends the arrays as literals; nothing is prepared, so that a pooler in between does no harm.
_WRITE = """
insert into {presence} as p (user_id, topic, status, metadata, node_id, last_seen_at)
select g.user_id, g.topic, g.status, g.metadata::jsonb, %(node)s, now()
  from unnest(%(users)s::text[], %(topics)s::text[], %(statuses)s::text[], %(metas)s::text[])
       as g (user_id, topic, status, metadata)
on conflict (user_id, coalesce(topic, ''), node_id) do update
   set status = excluded.status, metadata = excluded.metadata, last_seen_at = excluded.last_seen_at
"""
_END = """
update {presence} as p
   set status = 'offline', last_seen_at = now()
  from unnest(%(users)s::text[], %(topics)s::text[]) as g (user_id, topic)
 where p.user_id = g.user_id and coalesce(p.topic, '') = g.topic and p.node_id = %(node)s and p.status <> 'offline'
"""
_OURS = "select user_id, coalesce(topic, ''), status from {presence} where node_id = %(node)s and status <> 'offline'"
_TOUCH = """
update {presence}
   set last_seen_at = now()
 where node_id = %(node)s and status <> 'offline' and last_seen_at < now() - make_interval(secs => %(fresh)s)
"""
_GOODBYE = """
update {presence} set status = 'offline', last_seen_at = now() where node_id = %(node)s and status <> 'offline'
"""
# One node at a time sweeps; the others need not wait for it.
_SWEEP = """
with mine as materialized (
    select pg_try_advisory_xact_lock(hashtextextended('walstream presence ' || %(schema)s, 0)) as held
), stale as (
    update {presence}
       set status = 'offline'
     where (select held from mine)
       and node_id = '' and status <> 'offline' and last_seen_at < now() - make_interval(secs => %(stale)s)
    returning 1
), dead as (
    update {presence} as p
       set status = 'offline'
     where (select held from mine)
       and p.node_id not in ('', %(node)s) and p.status <> 'offline'
       and not exists (
           select from {nodes} as n
            where n.node_id = p.node_id and n.last_seen_at > now() - make_interval(secs => %(lost)s)
       )
    returning 1
), forgotten as (
    delete from {presence}
     where (select held from mine)
       and status = 'offline' and last_seen_at < now() - make_interval(secs => %(forget)s)
    returning 1
)
select (select count(*) from stale), (select count(*) from dead), (select count(*) from forgotten)
"""
_OUTSIDE = """
select p.id::text,
       p.user_id,
       p.topic,
       coalesce(c.type = 'private', false),
       (jsonb_build_object('user_id', p.user_id, 'status', p.status) || case jsonb_typeof(p.metadata)
           when 'object' then p.metadata
           else jsonb_build_object('metadata', p.metadata)
       end)::text
  from {presence} as p
  left join {channels} as c on c.slug = p.topic
 where p.node_id = '' and p.topic is not null and p.status <> 'offline'
 order by p.last_seen_at desc, p.id
 limit %(rows)s
"""


class PresenceMirror:
    """Keeps this node's rows as they should be, and tells ``outside`` all that SQL and the command line track.

    ``outside`` gets the whole list of now, of all rooms, whenever it may be another: entries whose key is the person
    and whose ref stays the same while nothing but the time changes. Global rows, which have no topic, are no room's.
    ``node_id``: as in ``realtime.nodes``. ``clock``: monotonic seconds. All methods but ``run`` are synchronous.
    """

    def __init__(
        self,
        database: Statements,
        schema: str,
        node_id: str,
        *,
        outside: Callable[[list[PresenceEntry]], None],
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts = Attempts(database, PRESENCE_UNREPORTED, node_id)
        self._reading = Attempts(database, PRESENCE_UNREPORTED, node_id)
        self._sweeping = Attempts(database, PRESENCE_UNREPORTED, node_id)
        self._outside = outside
        self._clock = clock
        self._rows = PresenceRows(idle_seconds)
        self._statements = _Statements(schema, node_id)
        self._check_at = 0.0  # trio's time
        self._news = trio.Event()

    def changed(self, entry: PresenceEntry, user_id: str | None) -> None:
        """An entry of this node came, changed or ended. Who it is of: ``user_id``, or else its key."""
        self._rows.changed(entry, user_id, self._clock())

    def touched(self, entry: str) -> None:
        """The client of an entry did something: its person is not away. An entry that is none is no error."""
        self._rows.touched(entry, self._clock())

    def notified(self, payload: str) -> None:
        """The table's trigger notified, or anybody else did: it says no more than that there may be something new."""
        del payload
        self._news.set()

    def again(self) -> None:
        """Notifications may have been missed."""
        self._news.set()

    async def run(self) -> None:
        """Mirror until cancelled, however long the database is away; then sets this node's rows offline."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_writing, self._write, PAUSE_SECONDS)
                nursery.start_soon(self._follow)
                nursery.start_soon(self._sweep)
        finally:
            await self._attempts.last(self._statements.goodbye)

    async def _write(self) -> bool:
        self._rows.age(self._clock())
        return await self._check() and await self._flush()

    async def _check(self) -> bool:
        """See that the table has our rows; False where it does not answer. Its server may have crashed."""
        attempts, statements = self._attempts, self._statements
        if trio.current_time() < self._check_at and not attempts.has_failed:
            return True
        statuses = await attempts.batch(statements.ours)
        if statuses is None or await attempts.sweep(statements.touch) is None:
            return False
        self._rows.found(statuses)
        self._check_at = trio.current_time() + CHECK_SECONDS
        return True

    async def _flush(self) -> bool:
        """Write what is pending now; False where the database does not take it."""
        for _ in range(self._rows.backlog):
            rows, gone = self._rows.pending(BATCH_ROWS)
            if not rows and not gone:
                break
            if await self._attempts.batch(functools.partial(self._statements.write, rows=rows, gone=gone)) is None:
                return False
            self._rows.wrote(rows, gone)
        return True

    async def _follow(self) -> None:
        delay = 0.0
        while True:
            self._news = trio.Event()
            entries = await self._reading.batch(self._statements.outside)
            if entries is None:
                delay = next_delay(delay, spread=0.0)
                await trio.sleep(delay)
                continue
            delay = 0.0
            self._outside(entries)
            await trio.sleep(OUTSIDE_PAUSE_SECONDS)
            with trio.move_on_after(REREAD_SECONDS):
                await self._news.wait()

    async def _sweep(self) -> None:
        while True:
            await self._sweeping.sweep(self._statements.sweep)
            await trio.sleep(SWEEP_SECONDS)


class _Statements:
    """The statements, each a function of a connection; they block and raise psycopg2.Error."""

    def __init__(self, schema: str, node: str) -> None:
        names = {table: sql.Identifier(schema, table) for table in ("presence", "nodes", "channels")}
        self._node = node
        self._schema = schema
        self._write, self._end, self._ours, self._touch, self._goodbye, self._sweep, self._outside = (
            sql.SQL(statement).format(**names)
            for statement in (_WRITE, _END, _OURS, _TOUCH, _GOODBYE, _SWEEP, _OUTSIDE)
        )

    def write(self, connection: PgConnection, rows: Sequence[PresenceRow], gone: Sequence[RowKey]) -> bool:
        """Rows in, and others offline. What PostgreSQL cannot hold is left out."""
        if rows:
            self._write_some(connection, rows)
        if gone:
            users, topics = [key.user_id for key in gone], [key.topic for key in gone]
            self._run(connection, self._end, users=users, topics=topics)
        return True

    def ours(self, connection: PgConnection) -> dict[RowKey, str]:
        """Our rows that are not offline: their statuses."""
        return {RowKey(user, topic): status for user, topic, status in self._run(connection, self._ours)}

    def touch(self, connection: PgConnection) -> bool:
        """Those who are there were seen now."""
        self._run(connection, self._touch, fresh=FRESH_SECONDS)
        return True

    def goodbye(self, connection: PgConnection) -> bool:
        """Nobody is here any more."""
        self._run(connection, self._goodbye)
        return True

    def sweep(self, connection: PgConnection) -> tuple[Any, ...]:
        """Rows made offline because nobody touched them, or their node is gone; rows forgotten."""
        values = {"schema": self._schema, "stale": STALE_SECONDS, "lost": NODE_SECONDS, "forget": FORGET_SECONDS}
        return self._run(connection, self._sweep, **values)[0]

    def outside(self, connection: PgConnection) -> list[PresenceEntry]:
        """What SQL and the command line track."""
        return [
            PresenceEntry(RoomKey(topic, private), row, user, _version(row, meta), meta.encode())
            for row, user, topic, private, meta in self._run(connection, self._outside, rows=OUTSIDE_ROWS)
        ]

    def _write_some(self, connection: PgConnection, rows: Sequence[PresenceRow]) -> None:
        try:
            self._run(
                connection,
                self._write,
                users=[row.key.user_id for row in rows],
                topics=[row.key.topic for row in rows],
                statuses=[row.status for row in rows],
                metas=[row.metadata.decode() for row in rows],
            )
        except psycopg2.Error as error:
            if (error.pgcode or "")[:2] not in SPOILT:
                raise
            self._write_spoilt(connection, rows)

    def _write_spoilt(self, connection: PgConnection, rows: Sequence[PresenceRow]) -> None:
        """One of them is at fault: jsonb takes less than JSON allows (U+0000, large numbers), and keys may be too long.

        It goes without its metadata, or not at all.
        """
        if len(rows) > 1:
            middle = len(rows) // 2
            self._write_some(connection, rows[:middle])
            self._write_some(connection, rows[middle:])
        elif rows[0].metadata != b"{}":
            self._write_some(connection, [rows[0]._replace(metadata=b"{}")])

    def _run(self, connection: PgConnection, statement: sql.Composed, **values: object) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, {"node": self._node, **values})
            return cursor.fetchall() if cursor.description else []


def _version(row: str, meta: str) -> str:
    """A ref for one row's values: other values have another one, on every node the same."""
    return base64.urlsafe_b64encode(hashlib.blake2b(f"{row} {meta}".encode(), digest_size=12).digest()).decode()
