"""What ``joins`` keeps of each join: while it waits, and once its changes are delivered."""

from __future__ import annotations

from typing import NamedTuple

from walstream.channel.effects import JoinRequest
from walstream.policy import Viewer
from walstream.shell.clients.connection import JoinOwner
from walstream.shell.clients.join_check import Wish
from walstream.shell.delivery.audience import Member

JoinKey = tuple[JoinOwner, int]
"""Whose channel, and its serial there."""


class Asked:
    """A join that is waiting, or, once its reply had to go out without the database, waiting for that."""

    __slots__ = ("claims", "owner", "promised", "request", "tried", "wishes")

    def __init__(self, owner: JoinOwner, request: JoinRequest, wishes: list[Wish]) -> None:
        self.owner = owner
        self.request = request
        self.claims = request.claims
        self.wishes = wishes
        self.promised: tuple[int, ...] = ()  # ids that the reply has named already
        self.tried = False

    @property
    def key(self) -> JoinKey:
        """By which ``joins`` knows it."""
        return self.owner, self.request.serial

    @property
    def role(self) -> str:
        """Whose rights count."""
        return self.claims.role

    @property
    def is_urgent(self) -> bool:
        """Whether a reply is due soon."""
        return not self.promised and not (self.tried and self.request.wait_seconds is not None)


class Joined(NamedTuple):
    """A join whose changes are delivered. ``ids``: one hold on the router each; ``wire``: what the client calls them.

    ``viewer``: who its bindings look as, None where no table that they mean has row-level security.
    """

    asked: Asked
    member: Member
    ids: tuple[int, ...]
    wire: tuple[int, ...]
    role: str
    viewer: Viewer | None
