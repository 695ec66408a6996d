"""A place in a room: who has it, and what its holder may do there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from walstream.auth.tokens import Claims
from walstream.channel import registry
from walstream.channel.permission import READS_ALL, READS_NOTHING, WRITES_ALL, WRITES_NOTHING, Reading, Writing
from walstream.channel.registry import RegisteredChannel, Role
from walstream.rooms import RoomKey


class Verdict(NamedTuple):
    """What somebody is in a room. ``room``: the one that the topic means, whatever the join said.

    ``by_policy``: policies let them in, and may not have been asked yet what they may write.
    """

    room: RoomKey
    channel: RegisteredChannel | None
    role: Role | None = None
    muted: bool = False
    reading: Reading = READS_ALL
    writing: Writing | None = WRITES_ALL
    by_policy: bool = False


class Seat:
    """One admitted join or request; the directory keeps it up to date until it is left or has ended.

    ``user``: the token's ``sub``, None without one. ``role``: None for who is no member. ``wanted``: the room that
    was asked for. ``claims``: the newest token's. ``headers``: JSON object text, for policies. ``writing``: None while
    it is not known. ``is_settled``: whether all this is of the claims. ``ended`` is told of
    a lost seat, ``changed`` of another ``reading``.
    """

    __slots__ = (
        "by_policy", "changed", "channel", "claims", "ended", "headers", "is_left", "is_settled", "muted", "reading",
        "role", "room", "wanted", "writing",
    )  # fmt: skip

    def __init__(
        self,
        wanted: RoomKey,
        claims: Claims,
        *,
        headers: str = "{}",
        ended: Callable[[str, str], None] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.wanted = wanted
        self.claims = claims
        self.headers = headers
        self.ended = ended
        self.changed = changed
        self.is_left = False
        self.room = wanted
        self.channel: RegisteredChannel | None = None
        self.muted = False
        self.reading = READS_NOTHING
        self.by_policy = False
        self.doubt()

    def doubt(self) -> None:
        """Nobody knows any more what its holder may do. What is delivered goes on until that is known."""
        self.role: Role | None = None
        self.is_settled = False
        self.writing: Writing | None = WRITES_NOTHING if self.room.private else WRITES_ALL
        if self.by_policy:
            self.writing = None  # asked for by whatever is sent next

    def use(self, verdict: Verdict) -> None:
        """Be what the verdict says, in its room."""
        reads = self.reading
        self.room, self.channel, self.role, self.muted, self.reading, self.writing, self.by_policy = verdict
        self.is_settled = True
        if self.reading != reads and self.changed is not None:
            self.changed()

    @property
    def user(self) -> str | None:
        """Who has it."""
        return self.claims.sub or None

    @property
    def may_send(self) -> bool:
        """Whether its holder may send to the room."""
        if self.by_policy:
            return self.writing is not None and self.writing.broadcast
        if not self.is_settled:
            return not self.room.private and not self.muted
        return registry.may_send(self.channel, self.role, muted=self.muted)

    @property
    def may_track(self) -> bool:
        """Whether its holder may be shown in presence."""
        return self.writing is not None and self.writing.presence

    @property
    def may_store(self) -> bool:
        """Whether its holder may have messages stored that the room would not store by itself."""
        return self.writing is not None and self.writing.persistence

    @property
    def may_moderate(self) -> bool:
        """See ``registry.may_moderate``."""
        return registry.may_moderate(self.role)

    @property
    def may_administer(self) -> bool:
        """See ``registry.may_administer``."""
        return registry.may_administer(self.role)
