"""Statements over ``messages``: storing many at once, reading them back, hiding, deleting, upkeep.

When which of them runs is decided in ``shell.channels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
from psycopg2 import sql

from walstream.channel.since import Position
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.database.rows import only, scalar

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

TABLE: Final = "messages"
CHANNEL_NAME_MAX: Final = 63
"""Bytes of a NOTIFY channel's name (PostgreSQL 17, NAMEDATALEN)."""

KEEP_HOURS: Final = 72
"""How long messages are kept where their channel does not say."""

Notification: TypeAlias = tuple[str, str]
"""Channel and payload of a NOTIFY."""

# The columns of every answer; ``to_json`` prints a time as the WAL's decoders do.
_COLUMNS = (
    "m.id::text, m.seq, m.topic, m.private, m.event, m.payload::text, m.binary_payload,"
    " pg_catalog.to_json(m.sent_at) #>> '{{}}'"
)
_MICROS = "(extract(epoch from m.sent_at) * 1000000)::int8"
_SHOWN = (
    "m.extension = 'broadcast' and m.event is not null and not m.hidden"
    " and (m.expires_at is null or m.expires_at > pg_catalog.now())"
)
_EPOCH = "timestamptz '1970-01-01 00:00:00Z' + %s * interval '1 microsecond'"

_INSERT = """
begin;
insert into {table}
       (id, topic, channel_id, extension, event, payload, binary_payload, private, sender_id, expires_at)
select w.id, w.topic, w.channel_id, 'broadcast', w.event, w.payload::jsonb, w.bytes, w.private, w.sender,
       pg_catalog.now() + w.ttl * interval '1 second'
  from unnest(%(ids)s::uuid[], %(topics)s::text[], %(channels)s::uuid[], %(events)s::text[], %(payloads)s::text[],
              %(bytes)s::bytea[], %(privates)s::boolean[], %(senders)s::text[], %(ttls)s::float8[])
       with ordinality w (id, topic, channel_id, event, payload, bytes, private, sender, ttl, n)
 order by w.n
returning id::text, seq, topic, private, pg_catalog.to_json(sent_at) #>> '{{}}'
"""

_NOTIFY = "select count(pg_catalog.pg_notify(n.c, n.p)) from unnest(%s::text[], %s::text[]) n (c, p);"


class NewMessage(NamedTuple):
    """A message to be stored. ``id``: a uuid. ``ttl_seconds``: None keeps it as long as its channel says."""

    id: str
    broadcast: Broadcast
    channel_id: str | None
    sender: str | None
    ttl_seconds: float | None


class Kept(NamedTuple):
    """A stored message with what clients are not told live. ``position``: where it is in its room's history."""

    broadcast: Broadcast
    sender: str | None
    position: Position


class Page(NamedTuple):
    """Messages, oldest first. ``has_more``: others come after them."""

    messages: list[Kept]
    has_more: bool


def store(
    connection: PgConnection,
    schema: str,
    messages: Sequence[NewMessage],
    notifications: Callable[[Sequence[Broadcast]], Sequence[Notification]],
) -> list[Broadcast]:
    """Store all in one transaction. Returns them with ``id``, ``seq`` and ``sent_at``, in the order given.

    ``notifications`` is asked, before the commit, what to NOTIFY with it. The connection is in autocommit. Raises
    psycopg2.Error: nothing was stored, unless the connection was lost in the commit, which nobody can tell.
    """
    broadcasts = [message.broadcast for message in messages]
    binaries = [memoryview(b.payload) if b.binary else None for b in broadcasts]
    values = {
        "ids": [message.id for message in messages],
        "topics": [b.room.subtopic for b in broadcasts],
        "channels": [message.channel_id for message in messages],
        "events": [b.event for b in broadcasts],
        "payloads": [None if b.binary else b.payload.decode() for b in broadcasts],
        "bytes": binaries,
        "privates": [b.room.private for b in broadcasts],
        "senders": [message.sender for message in messages],
        "ttls": [message.ttl_seconds for message in messages],
    }
    with connection.cursor() as cursor:
        try:
            cursor.execute(sql.SQL(_INSERT).format(table=sql.Identifier(schema, TABLE)), values)
            rows = {row[0]: row for row in cursor.fetchall()}
            stored = [_stored(message.broadcast, rows[message.id]) for message in messages]
            told = notifications(stored)
            if told:
                names, payloads = zip(*told, strict=True)
                cursor.execute(_NOTIFY + "commit", (list(names), list(payloads)))
            else:
                cursor.execute("commit")
        except BaseException:
            if not connection.closed:
                cursor.execute("rollback")
            raise
    return stored


def _stored(broadcast: Broadcast, row: Sequence[Any]) -> Broadcast:
    id_, seq, topic, private, sent_at = row
    # Without the client's own words for it: what is told is told with its meta.
    return msgspec.structs.replace(broadcast, room=RoomKey(topic, private), whole=b"", id=id_, seq=seq, sent_at=sent_at)


def channel_notification(schema: str, channel_id: str, message_id: str) -> list[Notification]:
    """What sessions hear that LISTEN to a registered channel; [] where the schema's name leaves no room for it."""
    name = f"{schema}:channel:{channel_id}"
    return [(name, message_id)] if len(name.encode()) <= CHANNEL_NAME_MAX else []


def fetch(connection: PgConnection, schema: str, ids: Sequence[str]) -> list[Broadcast]:
    """Messages by their ids, in the order of sending, those that are shown. Raises psycopg2.Error."""
    return _select(connection, schema, "m.id = any(%s::uuid[])", [list(ids)], "m.sent_at, m.seq")


def newest(connection: PgConnection, schema: str, room: RoomKey, since_ms: int, limit: int) -> list[Broadcast]:
    """The newest messages of a room from ``since_ms`` on, oldest first. Raises psycopg2.Error."""
    where, values = _in_room(room)
    where += f" and m.sent_at >= {_EPOCH} and m.sent_at < pg_catalog.now() + interval '1 minute'"
    found = _select(connection, schema, where, [*values, since_ms * 1000], "m.sent_at desc, m.seq desc", limit)
    return found[::-1]


def page(connection: PgConnection, schema: str, room: RoomKey, after: Position, limit: int) -> Page:
    """At most ``limit`` messages of a room after a position, oldest first. Raises psycopg2.Error."""
    where, values = _in_room(room)
    where += f" and (m.sent_at, m.seq) > ({_EPOCH}, %s)"
    statement = _statement(schema, f"{_COLUMNS}, m.sender_id, {_MICROS}", where, "m.sent_at, m.seq", limit=True)
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, after.micros, after.seq, limit + 1])
        rows = cursor.fetchall()
    kept = [Kept(_broadcast(row[:8]), row[8], Position(row[9], row[1])) for row in rows[:limit]]
    return Page(kept, len(rows) > limit)


def since(connection: PgConnection, schema: str, micros: int, limit: int) -> list[tuple[int, Broadcast]]:
    """What was inserted from a time on, whatever room, in the order of sending, with the 32-bit xid that did it.

    Raises psycopg2.Error.
    """
    where = f"m.inserted_at >= {_EPOCH}"
    statement = _statement(schema, f"{_COLUMNS}, m.xmin::text::int8", where, "m.seq", limit=True)
    with connection.cursor() as cursor:
        cursor.execute(statement, [micros, limit])
        return [(row[8], _broadcast(row[:8])) for row in cursor.fetchall()]


def hide(connection: PgConnection, schema: str, channel_id: str, message_id: str) -> bool:
    """Take a message of a channel out of its history; whether it was there. Raises psycopg2.Error."""
    return _changed(
        connection,
        schema,
        "update {} set hidden = true where id = %s::uuid and channel_id = %s::uuid",
        message_id,
        channel_id,
    )


def delete(connection: PgConnection, schema: str, channel_id: str, message_id: str) -> bool:
    """Delete a message of a channel; whether it was there. Raises psycopg2.Error."""
    return _changed(
        connection, schema, "delete from {} where id = %s::uuid and channel_id = %s::uuid", message_id, channel_id
    )


_LOCK = "select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('walstream upkeep ' || %s, 0))"

# Old by their channel's rule, or by the general one. The bound of the inner query keeps each transaction short.
_OLD = """
delete from {table} m
 using (select o.id, o.inserted_at
          from {table} o
          left join {channels} c on c.id = o.channel_id
         where o.sent_at < pg_catalog.now() - pg_catalog.make_interval(hours => %(least)s)
           and o.sent_at < pg_catalog.now()
                           - pg_catalog.make_interval(hours => coalesce(c.retention_hours, %(keep)s))
         limit %(limit)s) d
 where m.id = d.id and m.inserted_at = d.inserted_at
"""
_LEAST = "select least(min(retention_hours), %s) from {}"
_EXPIRED = """
delete from {table} m
 using (select o.id, o.inserted_at from {table} o where o.expires_at < pg_catalog.now() limit %(limit)s) d
 where m.id = d.id and m.inserted_at = d.inserted_at
"""


def maintain(connection: PgConnection, schema: str) -> tuple[int, int]:
    """Make the coming days' partitions and drop those that have expired. Returns how many. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("select created, dropped from {}(%s)").format(_function(schema)), (KEEP_HOURS,))
        created, dropped = only(cursor)
    return created, dropped


def _function(schema: str) -> sql.Identifier:
    return sql.Identifier(schema, "maintain_messages")


def delete_expired(connection: PgConnection, schema: str, limit: int, *, by_age: bool) -> int | None:
    """Delete at most ``limit`` messages whose time is over. Returns how many; None while another node does it.

    ``by_age``: by their channel's retention, else by their own ``expires_at``. Raises psycopg2.Error.
    """
    tables = {"table": sql.Identifier(schema, TABLE), "channels": sql.Identifier(schema, "channels")}
    connection.autocommit = False
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(_LOCK, (schema,))
            if not scalar(cursor):
                return None
            values = {"keep": KEEP_HOURS, "limit": limit}
            if by_age:
                cursor.execute(sql.SQL(_LEAST).format(tables["channels"]), (KEEP_HOURS,))
                values["least"] = scalar(cursor)
            cursor.execute(sql.SQL(_OLD if by_age else _EXPIRED).format(**tables), values)
            return int(cursor.rowcount)
    finally:
        if not connection.closed:
            connection.autocommit = True


def _in_room(room: RoomKey) -> tuple[str, list[Any]]:
    # What was said while a channel was public may be read by its members now, but never the other way round.
    return "m.topic = %s and (m.private = %s or (%s and m.channel_id is not null))", [*room, room.private]


def _statement(schema: str, columns: str, where: str, order: str, *, limit: bool) -> sql.Composed:
    text = f"select {columns} from {{}} m where {where} and {_SHOWN} order by {order}{' limit %s' if limit else ''}"  # noqa: S608 - constants
    return sql.SQL(text).format(sql.Identifier(schema, TABLE))


def _select(
    connection: PgConnection, schema: str, where: str, values: Sequence[Any], order: str, limit: int | None = None
) -> list[Broadcast]:
    statement = _statement(schema, _COLUMNS, where, order, limit=limit is not None)
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, limit] if limit is not None else values)
        return [_broadcast(row) for row in cursor.fetchall()]


def _broadcast(row: Sequence[Any]) -> Broadcast:
    id_, seq, topic, private, event, payload, binary, sent_at = row
    return Broadcast(
        room=RoomKey(topic, private),
        event=event or "",
        payload=bytes(binary) if binary is not None else (payload or "null").encode(),
        binary=binary is not None,
        id=id_,
        seq=seq,
        sent_at=sent_at,
    )


def _changed(connection: PgConnection, schema: str, statement: str, *values: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(sql.Identifier(schema, TABLE)), values)
        return bool(cursor.rowcount)
