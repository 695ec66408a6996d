"""What a session wants done, and what the shell answers to a join: frozen values, performed in the order given.

Who decides on them is ``session``; who performs them, the shell.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from walstream.auth.tokens import Claims
from walstream.channel.join import BroadcastConfig, ChangeItem, JoinConfig, PresenceConfig
from walstream.channel.pushes import Push
from walstream.channel.topic import TableName, Topic
from walstream.protocol.phoenix import ClientMessage, Ref
from walstream.protocol.shapes import Shape

SUBSCRIBED = "Subscribed to PostgreSQL"


class JoinRequest(msgspec.Struct, frozen=True):
    """A join that passed every check a session can make alone.

    ``serial`` tells it from all other joins of the session, also from those with the same topic and ``join_ref``.
    """

    serial: int
    name: Topic
    join_ref: Ref
    ref: Ref
    claims: Claims
    config: JoinConfig

    @property
    def topic(self) -> str:
        """The topic as frames name it."""
        return self.name.text

    @property
    def items(self) -> tuple[ChangeItem, ...]:
        """What changes it wants, in the order of the ids that ``Accepted`` has to bring."""
        return self.config.items

    @property
    def shape(self) -> Shape:
        """The form in which it wants changes."""
        return self.config.shape

    @property
    def feed(self) -> TableName | None:
        """The table of a table feed."""
        return self.name.table if self.config.shape is Shape.FEED else None

    @property
    def problem(self) -> str:
        """Why its items cannot be subscribed whatever the database says: ``Accepted`` brings it as an error."""
        return self.config.problem

    @property
    def private(self) -> bool:
        """Whether policies decide who may join."""
        return self.config.private

    @property
    def wait_seconds(self) -> float | None:
        """How long the client waits for its subscription to be live before the reply; None: it does not."""
        return self.config.wait_seconds

    @property
    def broadcast(self) -> BroadcastConfig:
        """How its broadcasts go."""
        return self.config.broadcast

    @property
    def presence(self) -> PresenceConfig:
        """How it takes part in presence."""
        return self.config.presence


class Accepted(msgspec.Struct, frozen=True):
    """The join goes ahead. ``ids``: one per item of the request, in order, more than 0, stable while joined.

    ``status`` and ``message`` are the ``system`` frame that follows the reply; no message, no frame. A request
    without items has none either.
    """

    ids: tuple[int, ...] = ()
    status: Literal["ok", "error"] = "ok"
    message: str = SUBSCRIBED


class Refused(msgspec.Struct, frozen=True):
    """The join ends here. ``reason``: ``Code: text`` for the client."""

    reason: str


JoinOutcome: TypeAlias = Accepted | Refused


class Send(msgspec.Struct, frozen=True):
    """Send one frame's payload, as a text frame unless ``binary``. ``urgent``: before all that waits to be sent."""

    data: bytes
    binary: bool = False
    urgent: bool = False


class JoinRequested(msgspec.Struct, frozen=True):
    """Look into the join and hand an outcome to ``Session.join_ready``."""

    request: JoinRequest


class JoinSettled(msgspec.Struct, frozen=True):
    """A join has its reply, for logs and metrics. ``failed``: refused for a reason that is not the client's doing.

    ``reason``: what the client was told, "" with ``ok``. ``seconds``: since the request. ``claims``: of who asked, for
    a join that was refused.
    """

    topic: str
    result: Literal["ok", "refused", "failed"]
    reason: str
    seconds: float
    claims: Claims | None = None


class Entered(msgspec.Struct, frozen=True):
    """The client has its ok reply: what the room owes it comes now, before anything else."""

    serial: int


class Pushed(msgspec.Struct, frozen=True):
    """A joined topic's client pushed something. ``asked``: the message to answer, None where nobody waits."""

    serial: int
    push: Push
    asked: ClientMessage | None


class Left(msgspec.Struct, frozen=True):
    """The topic of a requested join is no longer joined: deliver nothing more, forget the request."""

    topic: str
    join_ref: Ref
    serial: int


class TokenRefreshed(msgspec.Struct, frozen=True):
    """A joined topic has new claims: judge again what it may see."""

    topic: str
    join_ref: Ref
    serial: int
    claims: Claims


class Close(msgspec.Struct, frozen=True):
    """Close the WebSocket (RFC 6455, 7.4), after what was sent before."""

    code: int
    reason: str = ""


class Complaint(msgspec.Struct, frozen=True):
    """The client sent what cannot be used and gets no answer to: a line for the log. ``code``: a stable name."""

    code: str
    text: str


Effect: TypeAlias = Send | JoinRequested | JoinSettled | Entered | Pushed | Left | TokenRefreshed | Close | Complaint
