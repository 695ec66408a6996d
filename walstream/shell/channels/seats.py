"""A place in a room: who has it, and what its holder may do there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from walstream.auth.tokens import Claims
from walstream.channel import registry
from walstream.channel.registry import RegisteredChannel, Role
from walstream.rooms import RoomKey


class Verdict(NamedTuple):
    """What somebody is in a room. ``room``: the one that the topic means, whatever the join said."""

    room: RoomKey
    channel: RegisteredChannel | None
    role: Role | None
    muted: bool


class Seat:
    """One admitted join or request; the directory keeps it up to date until it is left or has ended.

    ``user``: the token's ``sub``, None without one. ``role``: None for who is no member. ``wanted``: the room that
    was asked for. ``claims``: the newest token's.
    """

    __slots__ = ("channel", "claims", "ended", "is_left", "muted", "role", "room", "wanted")

    def __init__(
        self, wanted: RoomKey, claims: Claims, verdict: Verdict, ended: Callable[[str, str], None] | None
    ) -> None:
        self.wanted = wanted
        self.claims = claims
        self.ended = ended
        self.is_left = False
        self.room = verdict.room
        self.use(verdict)

    def use(self, verdict: Verdict) -> None:
        """Be what the verdict says, in the same room."""
        self.channel = verdict.channel
        self.role = verdict.role
        self.muted = verdict.muted

    @property
    def user(self) -> str | None:
        """Who has it."""
        return self.claims.sub or None

    @property
    def may_send(self) -> bool:
        """Whether its holder may send to the room."""
        return registry.may_send(self.channel, self.role, muted=self.muted)

    @property
    def may_moderate(self) -> bool:
        """See ``registry.may_moderate``."""
        return registry.may_moderate(self.role)

    @property
    def may_administer(self) -> bool:
        """See ``registry.may_administer``."""
        return registry.may_administer(self.role)
