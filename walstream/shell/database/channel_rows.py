"""Rows of ``channels`` and ``channel_members``: asked for, and out of the WAL.

What they mean is in ``channel.registry``; who keeps them is ``shell.channels.directory``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
from psycopg2 import sql

from walstream.channel.registry import Membership, RegisteredChannel, Registry, channel_from, membership_from
from walstream.model import Change, Relation, Row, Snapshot
from walstream.shell.database.access import RoleFacts, load_roles
from walstream.shell.database.join_facts import load_snapshot
from walstream.shell.database.postgres import Database
from walstream.shell.database.rows import is_text

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

CHANNELS: Final = "channels"
MEMBERS: Final = "channel_members"

Pair: TypeAlias = tuple[str, str]
"""A channel's id and a user."""

_CHANNELS = "select id::text, slug, name, type, persist, retention_hours, metadata from {}"

_MEMBERS = """
select m.channel_id::text, m.user_id, m.role, m.muted
  from {} m
  join unnest(%(channels)s::uuid[], %(users)s::text[]) w (channel_id, user_id)
    on w.channel_id = m.channel_id and w.user_id = m.user_id
"""


class LoadedChannels(NamedTuple):
    """``snapshot``: changes that it sees are in the registry already."""

    registry: Registry
    snapshot: Snapshot


class LoadedMembers(NamedTuple):
    """``members``: None for pairs that are no membership. ``snapshot``: as of when."""

    members: Mapping[Pair, Membership | None]
    roles: Mapping[str, RoleFacts]
    snapshot: Snapshot


class Rows:
    """Asks a database for both tables. Both raise DatabaseUnreachable or DatabaseRefused."""

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._schema = schema

    async def channels(self) -> LoadedChannels:
        """All channels of now."""
        return await self._database.run(lambda connection: load_channels(connection, self._schema))

    async def members(self, pairs: Collection[Pair], roles: Collection[str]) -> LoadedMembers:
        """The memberships of the pairs, and facts of the roles."""
        return await self._database.run(lambda connection: load_members(connection, self._schema, pairs, roles))


def load_channels(connection: PgConnection, schema: str) -> LoadedChannels:
    """All channels of now. Raises psycopg2.Error; undefined_table means that ``walstream init`` is due."""
    # The snapshot is older than the rows: a change between them is applied twice, which changes nothing.
    snapshot = load_snapshot(connection)
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(_CHANNELS).format(sql.Identifier(schema, CHANNELS)))
        names = [column.name for column in cursor.description or ()]
        channels = [channel_from(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
    return LoadedChannels(Registry(channels), snapshot)


def load_members(
    connection: PgConnection, schema: str, pairs: Collection[Pair], roles: Collection[str]
) -> LoadedMembers:
    """The memberships of the pairs, and facts of the roles. Raises psycopg2.Error."""
    snapshot = load_snapshot(connection)
    members: dict[Pair, Membership | None] = dict.fromkeys(pairs)
    possible = [pair for pair in pairs if is_text(pair[1])]
    if possible:
        with connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(_MEMBERS).format(sql.Identifier(schema, MEMBERS)),
                {"channels": [channel for channel, _ in possible], "users": [user for _, user in possible]},
            )
            for channel_id, user, role, muted in cursor.fetchall():
                values = {"channel_id": channel_id, "user_id": user, "role": role, "muted": muted}
                members[channel_id, user] = membership_from(values)
    return LoadedMembers(members, load_roles(connection, roles) if roles else {}, snapshot)


def values_of(relation: Relation, row: Row | None) -> dict[str, Any] | None:
    """A row of the WAL by column name, as far as the WAL carries it; None for no row."""
    if row is None:
        return None
    return {
        column.name: msgspec.json.decode(cell)
        for column, cell in zip(relation.columns, row, strict=True)
        if cell is not None
    }


def channel_change(change: Change) -> tuple[str, RegisteredChannel | None]:
    """The id of the channel that an INSERT, UPDATE or DELETE means, and the channel afterwards; None: it is gone.

    Raises KeyError where the WAL's row has no id.
    """
    before, after = values_of(change.relation, change.old), values_of(change.relation, change.new)
    if after is None:
        return str((before or {})["id"]), None
    # A long value that an UPDATE leaves as it was is in the old row alone.
    channel = channel_from({**(before or {}), **after})
    return channel.id, channel


def member_change(change: Change) -> tuple[Pair | None, Membership | None]:
    """Which pair an INSERT, UPDATE or DELETE ends (None: none), and the membership that there is afterwards."""
    before, after = values_of(change.relation, change.old), values_of(change.relation, change.new)
    membership = membership_from({**(before or {}), **after}) if after is not None else None
    ended = (str(before["channel_id"]), str(before["user_id"])) if before and "user_id" in before else None
    if membership is not None and ended == (membership.channel_id, membership.user):
        ended = None
    return ended, membership
