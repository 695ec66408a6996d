"""One join of one connection as rooms know it, and what they see of the connection.

Plain state: what becomes of it is in ``rooms``.
"""

from __future__ import annotations

from typing import Protocol

from walstream.channel.broadcast import Ear
from walstream.channel.effects import JoinRequest
from walstream.channel.permission import READS_NOTHING
from walstream.channel.pushes import BroadcastPush, PresencePush
from walstream.protocol.phoenix import ClientMessage
from walstream.rooms import PresenceEntry
from walstream.shell.channels.seam import Seam
from walstream.shell.channels.seats import Seat
from walstream.shell.delivery.groups import GroupMember
from walstream.shell.delivery.outbox import Outbox


class RoomOwner(Protocol):
    """What rooms see of a connection. Every method is synchronous and none raises."""

    @property
    def id(self) -> str:
        """The connection's, unique in all nodes."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Where its frames go."""
        ...

    @property
    def vsn(self) -> str:
        """The version of the protocol that it speaks."""
        ...

    @property
    def headers(self) -> str:
        """Its handshake's headers as policies may see them: JSON object text."""
        ...

    def answer(self, asked: ClientMessage, status: str, response: bytes = b"{}") -> None:
        """Reply to a push. ``response``: JSON object text."""
        ...

    def push(self, serial: int, event: str, payload: bytes) -> None:
        """A frame for this connection alone. Nothing once the topic was left."""
        ...

    def end(self, serial: int, name: str, text: str) -> None:
        """End a channel whose client may no longer have it. ``Rooms.leave`` follows before this returns."""
        ...


class Guest:
    """One join, from its request to its end."""

    __slots__ = (
        "ear", "entry", "hears_presence", "held", "held_bytes", "key", "member", "own", "owner", "reading", "seam",
        "seat", "serial",
    )  # fmt: skip

    def __init__(self, owner: RoomOwner, request: JoinRequest) -> None:
        self.owner = owner
        self.serial = request.serial
        self.own = request.broadcast.own
        self.ear = Ear.of(owner.vsn, binary=request.config.hears_bytes)
        self.seat: Seat | None = None
        self.member: GroupMember | None = None  # while it is inside
        self.reading = READS_NOTHING  # what it hears as that member
        self.seam: Seam | None = None  # from the question for its replay until all that comes is new
        self.key = request.presence.key
        self.hears_presence = request.presence.enabled
        self.entry: PresenceEntry | None = None  # what it tracks
        self.held: list[
            tuple[BroadcastPush | PresencePush, ClientMessage | None]
        ] = []  # until it is known whether it may
        self.held_bytes = 0
