"""Who is present where: tracked, listed, counted and aged for the command line.

A row without a node is of SQL or the command line, and daemons tell their clients of it; the others are of sockets and
belong to their daemon. Every function raises psycopg2.Error.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

from walstream.channel.slug import is_uuid
from walstream.errors import NotFound
from walstream.shell.commands.own_tables import OwnTables, Row, judging

Status = Literal["online", "away", "offline"]

GET_COLUMNS: Final = ("user_id", "channel", "status", "metadata", "last_seen_at", "seconds_since_seen")
ONLINE_COLUMNS: Final = ("user_id", "channel", "status", "metadata", "last_seen_at", "seconds_ago")
STATISTICS_COLUMNS: Final = ("online", "away", "offline", "total_users", "total_channels")
SECONDS_MAX: Final = 10 * 366 * 24 * 3600

# A person in a place is what the best of his rows says, of equal ones the one seen last.
_BEST: Final = """
select distinct on (user_id, topic)
       user_id, topic as channel, status, metadata::text, last_seen_at,
       greatest(0, floor(extract(epoch from now() - last_seen_at)))::bigint as seconds
  from {presence}
 where (%(user)s is null or user_id = %(user)s) and (%(everywhere)s or topic = %(topic)s)
   and (not %(present)s or status <> 'offline')
 order by user_id, topic, array_position(array['online', 'away', 'offline'], status), last_seen_at desc
"""
_TRACK: Final = """
insert into {presence} as p (user_id, topic, status, metadata, last_seen_at, node_id)
values (%(user)s, %(topic)s, %(status)s, coalesce(%(metadata)s, '{{}}')::jsonb, now(), '')
on conflict (user_id, (coalesce(topic, '')), node_id) do update
   set status = excluded.status,
       last_seen_at = excluded.last_seen_at,
       metadata = case when %(metadata)s is null then p.metadata
                       when %(merge)s then p.metadata || excluded.metadata
                       else excluded.metadata end
returning id::text, user_id, topic as channel, status, metadata::text, last_seen_at
"""
_OFFLINE: Final = """
update {presence} set status = 'offline'
 where user_id = %(user)s and status <> 'offline' and (%(everywhere)s or topic = %(topic)s) and node_id = ''
"""
_HELD: Final = """
select distinct node_id from {presence}
 where user_id = %(user)s and status <> 'offline' and (%(everywhere)s or topic = %(topic)s) order by 1
"""


class Place(NamedTuple):
    """Where somebody is: a topic, or None for nowhere in particular."""

    topic: str | None


def find_place(tables: OwnTables, text: str) -> Place:
    """A registered channel by id or slug, or an open room in which somebody has been. Raises NotFound."""
    try:
        return Place(tables.channel(text).slug)
    except NotFound:
        here = "select 1 as one from {presence} where topic = %(topic)s limit 1"
        if is_uuid(text) or tables.first(here, {"topic": text}) is None:
            raise
        return Place(text)


def track(
    tables: OwnTables, user: str, place: Place, status: Status, metadata: str | None, *, merge: bool = False
) -> Row:
    """Say where somebody is. ``metadata``: JSON object text, in place of the old or merged into it; None: it stays."""
    with judging("METADATA"):
        row = tables.only(
            _TRACK,
            {"user": user, "topic": place.topic, "status": status, "metadata": metadata, "merge": merge},
        )
    return _row(row)


def of_user(tables: OwnTables, user: str, place: Place | None) -> list[Row]:
    """One person in one place; or, without a place, first what holds for him altogether, then each channel.

    Altogether: his best status, when he was last seen, and the metadata of his presence without a channel.
    Raises NotFound where nothing is known of him.
    """
    rows = _best(tables, user, place, "seconds_since_seen")
    if not rows:
        where = f" in {place.topic}" if place is not None else ""
        raise NotFound(
            f"nothing is known of the presence of {user}{where}", repair="walstream presence online lists who is there"
        )
    if place is not None:
        return rows
    ranks = ("online", "away", "offline")
    alone = next((row for row in rows if row["channel"] is None), None)
    newest = max(rows, key=lambda row: row["last_seen_at"])
    whole = {
        **newest,
        "channel": None,
        "status": min((row["status"] for row in rows), key=ranks.index),
        "metadata": alone["metadata"] if alone else msgspec.Raw(b"{}"),
    }
    return [whole, *sorted((row for row in rows if row["channel"] is not None), key=lambda row: row["channel"])]


def online(tables: OwnTables, place: Place | None) -> list[Row]:
    """Who is online or away, the one seen last first; everywhere without a place."""
    rows = _best(tables, None, place, "seconds_ago", present=True)
    return sorted(rows, key=lambda row: row["last_seen_at"], reverse=True)


def count(tables: OwnTables, place: Place | None) -> int:
    """How many people are online or away, each counted once."""
    row = tables.only(
        "select count(distinct user_id) as count from {presence}"
        " where status <> 'offline' and (%(everywhere)s or topic = %(topic)s)",
        {"everywhere": place is None, "topic": place.topic if place else None},
    )
    return int(row["count"])


def set_offline(tables: OwnTables, user: str, place: Place | None) -> tuple[int, list[str]]:
    """Set somebody offline in one place or everywhere: in how many, and the nodes whose sockets still hold him there.

    Raises NotFound where he is in none of them.
    """
    values = {"user": user, "everywhere": place is None, "topic": place.topic if place else None}
    with tables.transaction():
        changed = tables.count(_OFFLINE, values)
        held = tables.rows(_HELD, values)
    if not changed and not held:
        there = f" in {place.topic}" if place is not None else ""
        raise NotFound(f"{user} is not online{there}", repair="walstream presence online lists who is")
    return changed, [row["node_id"] for row in held]


def clean(tables: OwnTables, seconds: int) -> int:
    """Set everybody offline who was not seen for so long; how many rows."""
    return int(tables.only("select {cleanup_stale_presence}(%(seconds)s) as count", {"seconds": seconds})["count"])


def _best(
    tables: OwnTables, user: str | None, place: Place | None, seconds: str, *, present: bool = False
) -> list[Row]:
    """``seconds``: the name of that column. ``present``: only who is online or away."""
    values = {"user": user, "everywhere": place is None, "topic": place.topic if place else None, "present": present}
    rows = tables.rows(_BEST, values)
    for row in rows:
        row[seconds] = row.pop("seconds")
    return [_row(row) for row in rows]


def _row(row: Row) -> Row:
    return {**row, "metadata": msgspec.Raw(row["metadata"].encode())}
