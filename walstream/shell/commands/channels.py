"""Registered channels and their members: made, listed, changed and deleted for the command line.

The command line is the operator: roles and mutes bind clients, not it. Every function raises psycopg2.Error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import psycopg2

from walstream.channel.slug import slug_of, slug_problem
from walstream.errors import Conflict, InputError, NotFound
from walstream.shell.commands.own_tables import Channel, OwnTables, Row, judging

TYPES: Final = ("public", "private", "presence")
ROLES: Final = ("member", "moderator", "admin")
Type = Literal["public", "private", "presence"]
Role = Literal["member", "moderator", "admin"]

LIST_COLUMNS: Final = ("id", "slug", "name", "type", "members", "online", "created_at")
GET_COLUMNS: Final = (
    "id", "slug", "name", "type", "metadata", "total_members", "online_members", "created_at", "updated_at"
)  # fmt: skip
SETTING_COLUMNS: Final = ("persist", "retention_hours")
MEMBER_COLUMNS: Final = ("user_id", "role", "status", "joined_at", "last_seen_at")
METADATA_BYTES_MAX: Final = 262_144
"""Every daemon keeps the metadata of all channels in memory."""

RETENTION_HOURS_MAX: Final = 24 * 366 * 10

_LIST: Final = """
select c.id::text, c.slug, c.name, c.type,
       (select count(*) from {channel_members} m where m.channel_id = c.id) as members,
       (select count(distinct p.user_id) from {presence} p
         where p.channel_id = c.id and p.status in ('online', 'away')) as online,
       c.created_at, c.updated_at, c.metadata::text, c.persist, c.retention_hours
  from {channels} c
"""
_CHANGE: Final = """
update {channels} c
   set name = coalesce(%(name)s, c.name),
       type = coalesce(%(type)s, c.type),
       metadata = coalesce(%(metadata)s::jsonb, c.metadata),
       persist = coalesce(%(persist)s, c.persist),
       retention_hours = nullif(coalesce(%(retention_hours)s, c.retention_hours), 0)
 where c.id = %(id)s::uuid
"""
_MEMBERS: Final = """
select m.id::text, m.user_id, m.role, coalesce(p.status, 'offline') as status, m.joined_at, p.last_seen_at, m.muted
  from {channel_members} m
  left join lateral (
    select (array_agg(q.status order by array_position(array['online', 'away', 'offline'], q.status)))[1] as status,
           max(q.last_seen_at) as last_seen_at
      from {presence} q
     where q.channel_id = m.channel_id and q.user_id = m.user_id
  ) p on true
 where m.channel_id = %(channel)s::uuid
 order by m.joined_at, m.user_id
"""
_JOIN: Final = """
insert into {channel_members} as m (channel_id, user_id, role, muted)
values (%(channel)s::uuid, %(user)s, coalesce(%(role)s, 'member'), coalesce(%(muted)s, false))
on conflict (channel_id, user_id) do update
   set role = coalesce(%(role)s, m.role), muted = coalesce(%(muted)s, m.muted)
returning m.id::text, m.user_id, m.role, m.muted, m.joined_at, m.xmax = 0 as is_new
"""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a channel; None where it says nothing. ``metadata``: JSON object text."""

    name: str | None = None
    type: Type | None = None
    metadata: str | None = None
    persist: bool | None = None
    retention_hours: int | None = None
    """0: the general rule."""

    @property
    def said(self) -> tuple[str, ...]:
        """What it says something about, by column."""
        return tuple(key for key, value in msgspec.structs.asdict(self).items() if value is not None)


def check_schemas(metadata: str) -> None:
    """Raises InputError where ``metadata``, JSON object text, has ``schemas`` that check nothing."""
    schemas = msgspec.json.decode(metadata).get("schemas")
    if schemas is None:
        return
    from walstream.channel.schemas import Schemas  # slow to load

    for event, fault in Schemas(schemas).faults.items():
        raise InputError(f"METADATA: schemas: {event}: {fault}", repair='{"schemas": {EVENT or "*": a JSON Schema}}')


def create(tables: OwnTables, name: str, slug: str | None, wish: Wish, *, update: bool) -> tuple[Row, bool]:
    """Make a channel; its row, and whether it is new. ``update``: one that is there gets what ``wish`` says.

    Raises InputError, or Conflict where the slug is taken.
    """
    if not name.strip():
        raise InputError("the channel's name is empty", repair="a name, such as general")
    chosen = slug_of(name) if slug is None else slug
    if problem := slug_problem(chosen):
        raise InputError(f"no slug can be made of {chosen or name!r}: {problem}", repair="give one with --slug TEXT")
    values = {
        "slug": chosen, "name": name, "type": wish.type or "public", "metadata": wish.metadata or "{}",
        "persist": wish.persist is not False, "retention_hours": wish.retention_hours or None,
    }  # fmt: skip
    with judging("METADATA"):
        made = tables.first(
            "insert into {channels} (slug, name, type, metadata, persist, retention_hours)"
            " values (%(slug)s, %(name)s, %(type)s, %(metadata)s::jsonb, %(persist)s, %(retention_hours)s)"
            " on conflict (slug) do nothing returning id::text",
            values,
        )
    if made is not None:
        return _one(tables, made["id"]), True
    there = tables.first("select id::text, slug, name, type from {channels} where slug = %(slug)s", {"slug": chosen})
    if there is None:
        raise Conflict(f"the channel {chosen} was deleted at this moment", repair="try again")
    if not update:
        raise Conflict(
            f"the slug {chosen} is taken by the {there['type']} channel {there['name']}",
            repair="--slug TEXT gives the new channel another one, --update changes the one that is there",
        )
    return change(tables, Channel(**there), wish), False


def change(tables: OwnTables, channel: Channel, wish: Wish) -> Row:
    """Set what ``wish`` says and nothing else; the channel's row."""
    with judging("METADATA"):
        tables.count(_CHANGE, {**msgspec.structs.asdict(wish), "id": channel.id})
    return _one(tables, channel.id)


def list_channels(tables: OwnTables, kind: Type | None) -> list[Row]:
    """All channels, or those of a type, by slug."""
    return [
        _row(found)
        for found in tables.rows(_LIST + " where %(type)s is null or c.type = %(type)s order by c.slug", {"type": kind})
    ]


def get(tables: OwnTables, channel: Channel) -> Row:
    """One channel with its counts, in ``GET_COLUMNS`` and ``SETTING_COLUMNS``."""
    return _one(tables, channel.id)


def delete(tables: OwnTables, channel: Channel) -> Row:
    """Delete a channel with its members, messages and presences; how many there were."""
    with tables.transaction():
        counts = tables.only(
            "select (select count(*) from {channel_members} where channel_id = %(id)s::uuid) as members,"
            "       (select count(*) from {messages} where channel_id = %(id)s::uuid) as messages",
            {"id": channel.id},
        )
        tables.count("delete from {channels} where id = %(id)s::uuid", {"id": channel.id})
    return {"id": channel.id, "slug": channel.slug, "deleted": True, **counts}


def members(tables: OwnTables, channel: Channel) -> list[Row]:
    """Members in the order of joining, in ``MEMBER_COLUMNS``, with ``muted`` and ``id``."""
    return tables.rows(_MEMBERS, {"channel": channel.id})


def join(tables: OwnTables, channel: Channel, user: str, role: Role | None, *, muted: bool | None = None) -> Row:
    """Add a member, or set what is not None of one who is there; when he joined stays. Raises Conflict: it is full."""
    values: Mapping[str, object] = {"channel": channel.id, "user": user, "role": role, "muted": muted}
    try:
        return {**tables.only(_JOIN, values), "channel": channel.slug}
    except psycopg2.errors.CheckViolation as error:
        if error.diag.constraint_name != "channel_members_max_members_check":
            raise
        raise Conflict(
            f"{channel.slug}: {error.diag.message_primary}",
            repair="raise max_members in its metadata with walstream channel update, or remove a member",
        ) from error
    except psycopg2.errors.ForeignKeyViolation as error:
        raise NotFound(f"the channel {channel.slug} was deleted at this moment") from error


def leave(tables: OwnTables, channel: Channel, user: str) -> Row:
    """Remove a member. Raises NotFound where he is none."""
    gone = tables.first(
        "delete from {channel_members} where channel_id = %(channel)s::uuid and user_id = %(user)s"
        " returning id::text, user_id, role",
        {"channel": channel.id, "user": user},
    )
    if gone is None:
        raise _no_member(channel, user)
    return {**gone, "channel": channel.slug}


def set_member(tables: OwnTables, channel: Channel, user: str, role: Role | None, *, muted: bool | None = None) -> Row:
    """Set the role of a member, or whether he is muted. Raises NotFound where he is none."""
    row = tables.first(
        "update {channel_members} as m set role = coalesce(%(role)s, m.role), muted = coalesce(%(muted)s, m.muted)"
        " where channel_id = %(channel)s::uuid and user_id = %(user)s"
        " returning id::text, user_id, role, muted, joined_at",
        {"channel": channel.id, "user": user, "role": role, "muted": muted},
    )
    if row is None:
        raise _no_member(channel, user)
    return {**row, "channel": channel.slug}


def mute(tables: OwnTables, channel: Channel, user: str) -> Row:
    """Let a person send no more. In a channel where everybody may send, who is no member becomes a muted one."""
    if channel.type == "private":
        return set_member(tables, channel, user, None, muted=True)
    return join(tables, channel, user, None, muted=True)


def _no_member(channel: Channel, user: str) -> NotFound:
    return NotFound(f"{user} is no member of {channel.slug}", repair=f"walstream channel members {channel.slug}")


def _one(tables: OwnTables, channel_id: str) -> Row:
    row = tables.first(_LIST + " where c.id = %(id)s::uuid", {"id": channel_id})
    if row is None:
        raise NotFound(f"the channel {channel_id} was deleted at this moment")
    return _row(row)


def _row(row: Row) -> Row:
    return {
        **row,
        "metadata": msgspec.Raw(row["metadata"].encode()),
        "total_members": row["members"],
        "online_members": row["online"],
    }
