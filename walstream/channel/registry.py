"""Registered channels and their members as values: what a row says, and what each role may do.

Loading and following the rows is the shell's (``directory``); the schemas of messages are in ``schemas``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from walstream.channel.schemas import Schemas
from walstream.rooms import RoomKey

ChannelType: TypeAlias = Literal["public", "private", "presence"]
MemberRole: TypeAlias = Literal["member", "moderator", "admin"]
Role: TypeAlias = Literal["member", "moderator", "admin", "service"]

TYPES: Final = ("public", "private", "presence")
MEMBER_ROLES: Final = ("member", "moderator", "admin")
RANKS: Final[Mapping[str | None, int]] = {None: 0, "member": 1, "moderator": 2, "admin": 3, "service": 4}


class RegisteredChannel(msgspec.Struct, frozen=True, eq=False):
    """One row of ``channels``. ``slug``: the subtopic that clients join. ``persist``: broadcasts are stored.

    ``metadata``: JSON object text. ``max_members`` and ``max_message_bytes``: what the metadata bound, None for no
    bound of the channel's own. ``schemas``: what messages have to look like, compiled once per version of the row.
    """

    id: str
    slug: str
    name: str
    type: ChannelType = "public"
    persist: bool = True
    retention_hours: int | None = None
    metadata: bytes = b"{}"
    max_members: int | None = None
    max_message_bytes: int | None = None
    schemas: Schemas = msgspec.field(default_factory=Schemas)

    @property
    def is_private(self) -> bool:
        """Whether only members may come in."""
        return self.type == "private"

    @property
    def room(self) -> RoomKey:
        """The one room of the channel, whatever a join says."""
        return RoomKey(self.slug, self.is_private)

    def refusal(self, event: str, payload: bytes, *, binary: bool = False) -> str:
        """What is wrong with a message for this channel, "" for nothing: its size, or its form by the schema."""
        if self.max_message_bytes is not None and len(payload) > self.max_message_bytes:
            return f"the channel's messages have at most {self.max_message_bytes} bytes"
        return self.schemas.check(event, payload, binary=binary) if self.schemas else ""


class Membership(msgspec.Struct, frozen=True):
    """One row of ``channel_members``. ``user``: the ``sub`` of tokens."""

    channel_id: str
    user: str
    role: MemberRole = "member"
    muted: bool = False


def channel_from(values: Mapping[str, Any]) -> RegisteredChannel:
    """The channel of a row; columns by name, ``metadata`` decoded. Columns that are missing have their defaults.

    Raises KeyError without ``id`` and ``slug``. Metadata that do not bound sensibly bound nothing.
    """
    metadata = values.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    type_ = values.get("type")
    retention = values.get("retention_hours")
    return RegisteredChannel(
        id=str(values["id"]),
        slug=str(values["slug"]),
        name=str(values.get("name") or values["slug"]),
        # A type that this version does not know lets nobody in by mistake.
        type=cast("ChannelType", type_ if type_ in TYPES else "private"),
        persist=bool(values.get("persist", True)),
        retention_hours=retention if isinstance(retention, int) else None,
        metadata=msgspec.json.encode(metadata),
        max_members=_bound(metadata.get("max_members")),
        max_message_bytes=_bound(metadata.get("max_message_bytes")),
        schemas=Schemas(metadata.get("schemas")),
    )


def membership_from(values: Mapping[str, Any]) -> Membership:
    """The membership of a row; columns by name. Raises KeyError without channel, user and role."""
    role = values["role"]
    return Membership(
        str(values["channel_id"]),
        str(values["user_id"]),
        cast("MemberRole", role if role in MEMBER_ROLES else "member"),
        bool(values.get("muted")),
    )


def _bound(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


class Registry:
    """All registered channels, by slug and by id."""

    def __init__(self, channels: Iterable[RegisteredChannel] = ()) -> None:
        self._by_id = {channel.id: channel for channel in channels}
        self._by_slug = {channel.slug: channel for channel in self._by_id.values()}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[RegisteredChannel]:
        return iter(self._by_id.values())

    def find(self, slug: str) -> RegisteredChannel | None:
        """The channel that a subtopic names."""
        return self._by_slug.get(slug)

    def by_id(self, channel_id: str) -> RegisteredChannel | None:
        """The channel with this id."""
        return self._by_id.get(channel_id)

    def put(self, channel: RegisteredChannel) -> RegisteredChannel | None:
        """Add or replace a channel. Returns the version that it replaces."""
        before = self._by_id.get(channel.id)
        if before is not None and self._by_slug.get(before.slug) is before:
            del self._by_slug[before.slug]
        self._by_id[channel.id] = channel
        self._by_slug[channel.slug] = channel
        return before

    def remove(self, channel_id: str) -> RegisteredChannel | None:
        """Take a channel out. Returns it, None if it was not there."""
        channel = self._by_id.pop(channel_id, None)
        if channel is not None and self._by_slug.get(channel.slug) is channel:
            del self._by_slug[channel.slug]
        return channel

    def clear(self) -> None:
        """Take all out."""
        self._by_id.clear()
        self._by_slug.clear()


def may_send(channel: RegisteredChannel | None, role: Role | None, *, muted: bool) -> bool:
    """Whether somebody in the room may send to it. Nobody mutes the service."""
    if role == "service":
        return True
    return not muted and (channel is None or not channel.is_private or role is not None)


def may_moderate(role: Role | None) -> bool:
    """Whether the role may delete and hide messages, and remove and mute members."""
    return RANKS[role] >= RANKS["moderator"]


def may_administer(role: Role | None) -> bool:
    """Whether the role may change the channel's settings and members' roles, and delete the channel."""
    return RANKS[role] >= RANKS["admin"]


def outranks(role: Role | None, other: Role | None) -> bool:
    """Whether the one may act against the other: moderators not against each other, nor against admins."""
    return RANKS[role] > RANKS[other] or may_administer(role)
