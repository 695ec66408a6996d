"""Stored messages: sent, listed, replayed, counted, taken back and cleaned up for the command line.

What a daemon stores for its clients is not made here. Every function raises psycopg2.Error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from walstream.channel.since import Position, position_of
from walstream.channel.slug import is_uuid
from walstream.errors import InputError, NotFound
from walstream.shell.commands.own_tables import Channel, OwnTables, Row, judging

COLUMNS: Final = ("id", "event_type", "payload", "sender_id", "sent_at")
WIDE_COLUMNS: Final = (*COLUMNS, "seq", "private", "hidden", "expires_at")
LOG_COLUMNS: Final = ("sent_at", "channel", "event_type", "payload")
EVENT_COLUMNS: Final = ("event_type", "count", "last_sent")
STATISTICS_COLUMNS: Final = (
    "total_messages", "messages_last_hour", "messages_last_day", "unique_event_types", "unique_senders"
)  # fmt: skip

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 1000
HOURS_MAX: Final = 24 * 366 * 10
KEEP_HOURS: Final = 72
"""A day's partition is dropped as a whole when it is that old, or older where ``hours`` or a channel say so."""

PASSING_SECONDS: Final = 60
PAGE: Final = 1000
DELETED_AT_ONCE: Final = 5000
NOTIFY_NAME_BYTES_MAX: Final = 63

# Bytes are shown as a data URL, so that they are told from a string that a sender made.
_SHOWN: Final = """
select m.id::text, m.event as event_type,
       coalesce(m.payload::text, to_json('data:application/octet-stream;base64,'
           || replace(encode(m.binary_payload, 'base64'), E'\\n', ''))::text, 'null') as payload,
       m.sender_id, m.sent_at, m.seq, m.private, m.hidden, m.expires_at, m.topic as channel
  from {messages} m
 where m.extension = 'broadcast' and (m.expires_at is null or m.expires_at > now())
"""
_INSERT: Final = """
insert into {messages} (topic, channel_id, event, payload, sender_id, expires_at)
values (%(topic)s, %(channel)s::uuid, %(event)s, %(payload)s::jsonb, %(sender)s,
        now() + make_interval(secs => %(ttl)s))
returning id::text, seq, sent_at
"""
_STATISTICS: Final = """
select count(*) as total_messages,
       count(*) filter (where sent_at > now() - interval '1 hour') as messages_last_hour,
       count(*) filter (where sent_at > now() - interval '1 day') as messages_last_day,
       count(distinct event) as unique_event_types,
       count(distinct sender_id) as unique_senders
  from {messages}
 where channel_id = %(channel)s::uuid
"""
_EVENTS: Final = """
select coalesce(event, '') as event_type, count(*) as count, max(sent_at) as last_sent
  from {messages}
 where sent_at > now() - make_interval(hours => %(hours)s)
   and (%(channel)s is null or channel_id = %(channel)s::uuid)
 group by 1
 order by 2 desc, 3 desc, 1
"""
_EXPIRED: Final = """
delete from {messages} m
 where (m.id, m.inserted_at) in (
   select x.id, x.inserted_at
     from {messages} x
     left join {channels} c on c.id = x.channel_id
    where x.expires_at < now()
       or x.sent_at < now() - make_interval(hours => %(least)s)
          and x.sent_at < now() - make_interval(hours => coalesce(c.retention_hours, %(hours)s))
    limit %(limit)s
 )
"""


def send(
    tables: OwnTables, channel: Channel, event: str, payload: str, sender: str | None, *, ttl: int | None = None
) -> Row:
    """Store a message and tell daemons and direct listeners of it, in one transaction; its id, seq and sent_at.

    ``payload``: JSON text. ``ttl``: seconds after which it is deleted; of a channel that keeps nothing, a minute: that
    is how nodes get it. Raises InputError, also where the payload is not what the channel's schemas say.
    """
    kept = tables.only(
        "select metadata -> 'schemas' as schemas, persist from {channels} where id = %(id)s::uuid", {"id": channel.id}
    )
    if kept["schemas"] is not None:
        _check(channel, kept["schemas"], event, payload)
    values = {
        "topic": channel.slug, "channel": channel.id, "event": event, "payload": payload, "sender": sender,
        "ttl": ttl or (None if kept["persist"] else PASSING_SECONDS),
    }  # fmt: skip
    with tables.transaction(), judging("PAYLOAD"):
        row = tables.only(_INSERT, values)
        _tell(tables, row["id"], channel.id)
    return row


def _tell(tables: OwnTables, message_id: str, channel_id: str | None) -> None:
    told = {f"{tables.schema}:bus": f"m{message_id}"}
    if channel_id is not None:
        told[f"{tables.schema}:channel:{channel_id}"] = message_id
    for name, text in told.items():
        if len(name.encode()) <= NOTIFY_NAME_BYTES_MAX:  # a long schema's name leaves no room for the channel's
            tables.rows("select pg_catalog.pg_notify(%(name)s, %(text)s)", {"name": name, "text": text})


def _check(channel: Channel, schemas: object, event: str, payload: str) -> None:
    from walstream.channel.schemas import Schemas  # slow to load

    if refusal := Schemas(schemas).check(event, payload.encode()):
        raise InputError(
            f"PAYLOAD: {refusal}", repair=f"walstream channel get {channel.slug} shows the schemas in its metadata"
        )


def latest(tables: OwnTables, channel: Channel | None, limit: int, *, with_hidden: bool = False) -> list[Row]:
    """The newest ``limit`` messages of a channel, or of all topics, newest first."""
    rows = tables.rows(
        _SHOWN
        + " and (%(channel)s is null or m.channel_id = %(channel)s::uuid) and (%(hidden)s or not m.hidden)"
        + " order by m.sent_at desc, m.seq desc limit %(limit)s",
        {"channel": channel.id if channel else None, "limit": limit, "hidden": with_hidden},
    )
    return [_row(row) for row in rows]


def replay(tables: OwnTables, channel: Channel, after: Position, *, limit: int | None = None) -> Iterator[list[Row]]:
    """Messages after a place in the history, oldest first, in pages. Nothing is told twice."""
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        rows = tables.rows(
            _SHOWN
            + " and m.channel_id = %(channel)s::uuid and not m.hidden"
            + " and (m.sent_at, m.seq) > (%(time)s::timestamptz, %(seq)s)"
            + " order by m.sent_at, m.seq limit %(size)s",
            {"channel": channel.id, "time": after.time, "seq": after.seq, "size": size},
        )
        if not rows:
            return
        yield [_row(row) for row in rows]
        if len(rows) < size:
            return
        after = place_of(rows[-1])
        left = None if left is None else left - len(rows)


def place_of(row: Row) -> Position:
    """Where to go on after a message."""
    return position_of(row["sent_at"], row["seq"])


def since(tables: OwnTables, time: dt.datetime, most: int) -> list[Row]:
    """The newest ``most`` messages of all topics that were sent after ``time``, oldest first."""
    rows = tables.rows(
        _SHOWN + " and not m.hidden and m.sent_at > %(time)s" + " order by m.sent_at desc, m.seq desc limit %(most)s",
        {"time": time, "most": most},
    )
    return [_row(row) for row in reversed(rows)]


def events(tables: OwnTables, channel: Channel | None, hours: int) -> list[Row]:
    """Events of the last hours with their counts, the most frequent first; of all topics without a channel."""
    return tables.rows(_EVENTS, {"channel": channel.id if channel else None, "hours": hours})


def statistics(tables: OwnTables, channel: Channel) -> Row:
    """Numbers of one channel, in ``STATISTICS_COLUMNS``."""
    return tables.only(_STATISTICS, {"channel": channel.id})


def clean(tables: OwnTables, hours: int) -> int:
    """Delete what is older than that, or than its own channel says, or has expired; how many. Some at a time.

    Partitions of days are made ahead and dropped as well, as the daemon does it every hour.
    """
    least = tables.only("select least(min(retention_hours), %(hours)s) as least from {channels}", {"hours": hours})
    deleted = 0
    while True:
        count = tables.count(_EXPIRED, {"hours": hours, "least": least["least"], "limit": DELETED_AT_ONCE})
        deleted += count
        if count < DELETED_AT_ONCE:
            break
    tables.rows("select * from {maintain_messages}(%(keep)s)", {"keep": max(hours, KEEP_HOURS)})
    return deleted


def hide(tables: OwnTables, ids: Sequence[str], *, hidden: bool) -> int:
    """Take messages out of history and replay, or back into it; all of them or none. Raises NotFound.

    Clients are told of what is hidden, by the event ``message.hidden``.
    """
    with tables.transaction():
        rows = tables.rows(
            "update {messages} set hidden = %(hidden)s, updated_at = now() where id = any(%(ids)s::uuid[])"
            " returning id::text, topic, channel_id::text, private",
            {"ids": _ids(ids), "hidden": hidden},
        )
        _all_there(ids, rows)
        if hidden:
            _announce(tables, rows, "message.hidden")
    return len(rows)


def delete(tables: OwnTables, ids: Sequence[str]) -> int:
    """Delete messages, all of them or none. Raises NotFound. Clients are told, by the event ``message.deleted``."""
    with tables.transaction():
        rows = tables.rows(
            "delete from {messages} where id = any(%(ids)s::uuid[])"
            " returning id::text, topic, channel_id::text, private",
            {"ids": _ids(ids)},
        )
        _all_there(ids, rows)
        _announce(tables, rows, "message.deleted")
    return len(rows)


def _announce(tables: OwnTables, rows: Sequence[Row], event: str) -> None:
    """The same event as by a moderator's client. Nodes look messages up, so it is one itself, for a minute."""
    for row in rows:
        said = tables.only(
            "insert into {messages} (topic, channel_id, private, event, payload, expires_at)"
            " values (%(topic)s, %(channel_id)s::uuid, %(private)s, %(event)s,"
            "         jsonb_build_object('id', %(id)s, 'by', null), now() + make_interval(secs => %(seconds)s))"
            " returning id::text",
            {**row, "event": event, "seconds": PASSING_SECONDS},
        )
        _tell(tables, said["id"], row["channel_id"])


def _ids(given: Iterable[str]) -> list[str]:
    ids = list(given)
    for text in ids:
        if not is_uuid(text):
            raise InputError(f"ID: {text!r} is no message's id", repair="walstream messages CHANNEL shows ids")
    return ids


def _all_there(ids: Sequence[str], rows: Sequence[Row]) -> None:
    missing = sorted({text.lower() for text in ids} - {row["id"] for row in rows})
    if missing:
        raise NotFound(f"there is no message {', '.join(missing)}", repair="walstream messages CHANNEL shows ids")


def _row(row: Row) -> Row:
    return {**row, "payload": msgspec.Raw(row["payload"].encode())}
