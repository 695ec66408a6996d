"""One topic of one connection, from its join to its end, as ``session`` remembers it.

Plain state: every transition lives in ``session``.
"""

from __future__ import annotations

import enum
from typing import Final

from walstream.channel.effects import JoinRequest
from walstream.channel.rate import Bucket
from walstream.channel.topic import Topic

REFRESH_SECONDS: Final = 10.0
"""At most one change of token per channel in this time; of several the last one counts."""


class State(enum.Enum):
    """Where a channel is between its join and its end."""

    HELD = "held"  # the join waits for its turn under the rate; nobody else knows of it
    ASKED = "asked"  # requested, not answered
    JOINED = "joined"


class Channel:
    """One topic that the client has joined or is joining."""

    __slots__ = (
        "ack", "claims", "held_token", "join_ref", "presence_calls", "ref", "refreshed_at", "request", "requested_at",
        "serial", "state", "token", "topic", "turn_at", "untold", "wait_until",
    )  # fmt: skip

    def __init__(self, request: JoinRequest, token: str, now: float, turn_at: float) -> None:
        self.serial = request.serial
        self.topic: Topic = request.name
        self.join_ref = request.join_ref
        self.ref = request.ref
        self.claims = request.claims
        self.ack = request.broadcast.ack
        self.token = token
        self.state = State.HELD
        self.request: JoinRequest | None = request  # until it is answered: payloads may be large
        self.requested_at = now
        self.turn_at = turn_at
        self.wait_until = now + request.wait_seconds if request.wait_seconds and request.items else None
        self.refreshed_at = -REFRESH_SECONDS
        self.held_token: str | None = None
        self.presence_calls: Bucket | None = None  # made by the first one
        self.untold = False  # claims that came before the answer, for ``Session.tick`` to tell of

    @property
    def deadline(self) -> float | None:
        """When ``Session.tick`` has to look at it next."""
        found = [self.claims.exp, self.wait_until]
        if self.state is State.HELD:
            found.append(self.turn_at)
        if self.untold:
            found.append(0.0)
        if self.held_token is not None:
            found.append(self.refreshed_at + REFRESH_SECONDS)
        return min((time for time in found if time is not None), default=None)
