"""One client's connection: its socket, its session, and what the session's effects do to the rest of the node.

The rules are the session's (``walstream.channel.session``); who may be in a room stands behind ``Rooms``, who gets
table changes behind ``Joins``; who is let in is decided in ``admission``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal, Protocol

import structlog
import trio

from walstream.auth.tokens import Claims
from walstream.channel.effects import (
    Close,
    Complaint,
    Effect,
    Entered,
    JoinOutcome,
    JoinRequest,
    JoinRequested,
    JoinSettled,
    Left,
    Pushed,
    Refused,
    Send,
    TokenRefreshed,
)
from walstream.channel.pushes import Push
from walstream.channel.session import TOO_MANY_USERS, Session
from walstream.protocol.phoenix import ClientMessage
from walstream.shell.channels.connection_report import ConnectionFacts
from walstream.shell.channels.guests import RoomOwner
from walstream.shell.clients.expiries import Expiries
from walstream.shell.clients.gate import Ticket
from walstream.shell.clients.refusals import COMPLAINTS, REFUSED_JOINS
from walstream.shell.clients.sockets import INTERNAL_ERROR, Socket
from walstream.shell.delivery.outbox import Outbox
from walstream.telemetry.log import CHANNEL_JOINED, CHANNEL_LEFT, CHANNEL_REFUSED, HANDLER_FAILED, MESSAGE_REFUSED
from walstream.telemetry.metrics import Metrics

LOGGED_TOPIC_MAX: Final = 200
"""Characters of a client's own text in a log line."""

RECHECK_SLICE: Final = 100
"""Connections whose tokens are looked at before other tasks get a turn."""

log = structlog.get_logger()


class JoinOwner(Protocol):
    """What ``Joins`` sees of a connection. Every method is synchronous and none raises."""

    @property
    def outbox(self) -> Outbox:
        """Where its frames go; replies and changes share its one queue, so that they keep their order."""
        ...

    @property
    def vsn(self) -> str:
        """The version of the protocol that its frames are encoded in."""
        ...

    def join_ready(self, serial: int, outcome: JoinOutcome) -> bool:
        """Answer a join: reply and ``system`` frame are in the outbox when this returns.

        Returns whether the topic is joined now. Only then may changes be delivered, from the same synchronous step on:
        so no change comes before the reply, and none between is lost. False for a refusal, for a join that was left or
        timed out meanwhile (``Joins.forget`` has told), and for one that waits and got an error (it tells now).
        """
        ...

    def system(
        self,
        serial: int,
        status: Literal["ok", "error"],
        message: str,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """A later ``system`` frame about table changes. ``details``: further members. Nothing once it was left."""
        ...

    def push(self, serial: int, event: str, payload: bytes) -> None:
        """A frame of this channel alone. ``payload``: JSON text. Nothing once it was left."""
        ...

    def end(self, serial: int, name: str, text: str) -> None:
        """End a channel whose client may no longer have it. ``Joins.forget`` follows before this returns."""
        ...


class Joins(Protocol):
    """Who answers joins and delivers changes. Every method is synchronous and must not wait."""

    def ask(self, owner: JoinOwner, request: JoinRequest) -> None:
        """Look into a join; ``owner.join_ready`` is to be called exactly once, now or later, unless it is forgotten."""
        ...

    def forget(self, owner: JoinOwner, serial: int) -> None:
        """The join was left, answered or not: deliver nothing more. What was due before may still be queued now.

        It may be one that ``join_ready`` has returned False for.
        """
        ...

    def refreshed(self, owner: JoinOwner, serial: int, claims: Claims) -> None:
        """A joined topic has new claims: judge again what it may see."""
        ...


class Rooms(Protocol):
    """Who decides about rooms, and carries what their members say. Every method is synchronous and none raises."""

    def ask(
        self, owner: RoomOwner, request: JoinRequest, admitted: Callable[[], None], refused: Callable[[str], None]
    ) -> None:
        """May this client be in the room? One of the two is called, now or later, unless it is left before."""
        ...

    def enter(self, owner: RoomOwner, serial: int) -> None:
        """The client has its ok reply: it is in the room from here on."""
        ...

    def leave(self, owner: RoomOwner, serial: int) -> None:
        """The channel has gone, whatever state its join was in; maybe it was never asked about."""
        ...

    def refreshed(self, owner: RoomOwner, serial: int, claims: Claims) -> None:
        """A joined topic has new claims: judge again whether it may stay."""
        ...

    def pushed(self, owner: RoomOwner, serial: int, push: Push, asked: ClientMessage | None) -> None:
        """A joined client pushed something. ``asked``: the message to answer, None where nobody waits."""
        ...


class Report(Protocol):
    """Who is told which connections there are. Neither method waits or raises."""

    def opened(self, connection_id: str, facts: Callable[[], ConnectionFacts]) -> None:
        """A connection is there; ``facts`` may be asked for until it is closed."""
        ...

    def closed(self, connection_id: str) -> None:
        """It is gone."""
        ...


class Connections:
    """What all connections of a node share. ``clock``: seconds since the epoch. ``channels``: joined by all of them."""

    def __init__(
        self,
        joins: Joins,
        rooms: Rooms,
        report: Report,
        expiries: Expiries,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.joins = joins
        self.rooms = rooms
        self.report = report
        self.expiries = expiries
        self.metrics = metrics
        self.clock = clock
        self.channels = 0
        self._open: dict[Connection, None] = {}
        self._recheck_wanted = trio.Event()
        metrics.watch("channels", lambda: self.channels)

    def opened(self, connection: Connection) -> None:
        """One more."""
        self._open[connection] = None

    def closed(self, connection: Connection) -> None:
        """One less."""
        self._open.pop(connection, None)

    def recheck(self) -> None:
        """More tokens are revoked than before: end the channels that go by one, soon."""
        self._recheck_wanted.set()

    async def run(self) -> None:
        """Do what ``recheck`` asked for, with turns for others between, until cancelled."""
        while True:
            await self._recheck_wanted.wait()
            self._recheck_wanted = trio.Event()
            for number, connection in enumerate(list(self._open)):
                connection.recheck()
                if number % RECHECK_SLICE == 0:
                    await trio.lowlevel.checkpoint()


class Connection:
    """Performs what the session of one socket decides.

    A ``Handler`` for the edge, a ``JoinOwner`` for ``Joins`` and a ``RoomOwner`` for ``Rooms``.
    """

    __slots__ = (
        "_channels", "_complained", "_deadline", "_session", "_shared", "_socket", "_ticket", "_user_agent", "headers",
    )  # fmt: skip

    def __init__(
        self,
        socket: Socket,
        session: Session,
        shared: Connections,
        *,
        user_agent: str = "",
        ticket: Ticket | None = None,
        headers: str = "{}",
    ) -> None:
        """``ticket``: its place in the counts, given back when it is closed."""
        self._socket = socket
        self._ticket = ticket
        self._user_agent = user_agent
        self.headers = headers  # see ``RoomOwner``
        self._session = session
        self._shared = shared
        self._deadline: float | None = None
        self._channels = 0
        self._complained: frozenset[str] = frozenset()
        shared.report.opened(socket.id, self._facts)
        shared.opened(self)

    def _facts(self) -> ConnectionFacts:
        socket = self._socket
        return ConnectionFacts(
            user_id=self._session.user or None,
            connected_at=socket.connected_at,
            address=socket.peer,
            user_agent=self._user_agent,
            vsn=self.vsn,
            topics=len(self._session),
            queued_bytes=socket.outbox.queued_bytes,
            quiet_seconds=trio.current_time() - socket.heard_at,
        )

    @property
    def id(self) -> str:
        """The socket's, for logs."""
        return self._socket.id

    @property
    def outbox(self) -> Outbox:
        """Where its frames go."""
        return self._socket.outbox

    @property
    def vsn(self) -> str:
        """The version of the protocol that it speaks."""
        return self._session.vsn

    # -- for the edge

    def message(self, data: str | bytes) -> None:
        """One whole message of the client."""
        shared = self._shared
        shared.metrics.messages_in.inc()
        self._perform(self._session.receive(data, shared.clock()))

    def drain(self) -> None:
        """Say goodbye on every joined channel; the edge closes the socket."""
        self._perform(self._session.drain())

    def closed(self) -> None:
        """Leave every channel and forget all deadlines."""
        if self._ticket is not None:
            self._ticket.give_back()
        self._shared.report.closed(self._socket.id)
        self._shared.closed(self)
        self._perform(self._session.leave_all())

    # -- for joins and deadlines

    def join_ready(self, serial: int, outcome: JoinOutcome) -> bool:
        """See ``JoinOwner``."""
        self._from_outside(lambda: self._session.join_ready(serial, outcome, self._shared.clock()))
        if isinstance(outcome, Refused):
            self._shared.rooms.leave(self, serial)
        return self._socket.is_open and self._session.is_joined(serial)

    def system(
        self,
        serial: int,
        status: Literal["ok", "error"],
        message: str,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """See ``JoinOwner``."""
        self._from_outside(lambda: self._session.system(serial, status, message, details))

    def end(self, serial: int, name: str, text: str) -> None:
        """See ``JoinOwner``."""
        self._from_outside(lambda: self._session.end(serial, name, text, self._shared.clock()))

    def answer(self, asked: ClientMessage, status: str, response: bytes = b"{}") -> None:
        """See ``RoomOwner``."""
        self._from_outside(lambda: self._session.answer(asked, status, response))

    def push(self, serial: int, event: str, payload: bytes) -> None:
        """See ``RoomOwner``."""
        self._from_outside(lambda: self._session.push(serial, event, payload))

    def tick(self, now: float) -> None:
        """See ``Ticked``."""
        self._deadline = None
        self._from_outside(lambda: self._session.tick(now))

    def recheck(self) -> None:
        """End what goes by a token that is revoked."""
        self._from_outside(lambda: self._session.recheck(self._shared.clock()))

    # -- performing

    def _from_outside(self, decide: Callable[[], list[Effect]]) -> None:
        try:
            self._perform(decide())
        except Exception:  # bulkhead: a bug met by one connection must not end a task that serves them all
            log.exception(HANDLER_FAILED, session_id=self._socket.id, peer=self._socket.peer)
            self._socket.close(INTERNAL_ERROR, "internal error")

    def _perform(self, effects: list[Effect]) -> None:
        socket = self._socket
        was_corked, socket.corked = socket.corked, True
        try:
            for effect in effects:
                if isinstance(effect, Send):
                    self._send(effect)
                else:
                    self._act(effect)
        finally:
            if not was_corked:
                socket.corked = False
                socket.outbox.flush()
            self._keep_books()

    def _send(self, effect: Send) -> None:
        if effect.urgent:
            self._socket.send_urgent(effect.data)
        else:
            self._socket.send(effect.data, effect.binary)

    def _act(self, effect: Effect) -> None:
        joins, rooms = self._shared.joins, self._shared.rooms
        match effect:
            case Pushed(serial, push, asked):
                rooms.pushed(self, serial, push, asked)
            case JoinRequested(request) if not self._counts_for(request.claims):
                self._refused(request.serial, TOO_MANY_USERS)
            case JoinRequested(request):
                admitted = partial(joins.ask, self, request)
                rooms.ask(self, request, admitted, partial(self._refused, request.serial))
            case Entered(serial):
                rooms.enter(self, serial)
            case Left(topic, _, serial):
                log.debug(CHANNEL_LEFT, session_id=self._socket.id, topic=topic[:LOGGED_TOPIC_MAX])
                joins.forget(self, serial)
                rooms.leave(self, serial)
            case TokenRefreshed(_, _, serial, claims) if not self._counts_for(claims):
                self._shared.metrics.refused("user_connections")
                name, _, text = TOO_MANY_USERS.partition(": ")
                self.end(serial, name, text)
            case TokenRefreshed(_, _, serial, claims):
                joins.refreshed(self, serial, claims)
                rooms.refreshed(self, serial, claims)
            case JoinSettled():
                self._report(effect)
            case Close(code, reason):
                self._socket.close(code, reason)
            case Complaint(code, text):
                self._complain(code, text)
            case Send():
                self._send(effect)

    def _counts_for(self, claims: Claims) -> bool:
        """Whether the user of a join may have this connection, too: official clients name their user only here."""
        return self._ticket is None or self._ticket.count("user", claims.sub)

    def _refused(self, serial: int, reason: str) -> None:
        self.join_ready(serial, Refused(reason))

    def _report(self, settled: JoinSettled) -> None:
        metrics = self._shared.metrics
        metrics.joined(settled.result)
        metrics.join_seconds.observe(settled.seconds)
        topic = settled.topic[:LOGGED_TOPIC_MAX]
        if settled.result == "ok":
            log.debug(CHANNEL_JOINED, session_id=self._socket.id, topic=topic, seconds=round(settled.seconds, 6))
        else:
            self._count_refusal(REFUSED_JOINS, settled.reason.partition(":")[0])
            log.info(
                CHANNEL_REFUSED,
                session_id=self._socket.id,
                peer=self._socket.peer,
                topic=topic,
                role=settled.claims.role[:LOGGED_TOPIC_MAX] if settled.claims is not None else None,
                user=settled.claims.sub[:LOGGED_TOPIC_MAX] if settled.claims is not None else None,
                reason=settled.reason,
            )

    def _count_refusal(self, reasons: Mapping[str, str], code: str) -> None:
        if code in reasons:
            self._shared.metrics.refused(reasons[code])

    def _complain(self, code: str, text: str) -> None:
        """The first of each kind is worth a line; a client that goes on like that must not fill the log."""
        self._count_refusal(COMPLAINTS, code)
        write = log.debug if code in self._complained else log.info
        self._complained |= {code}
        write(MESSAGE_REFUSED, session_id=self._socket.id, peer=self._socket.peer, code=code, reason=text)

    def _keep_books(self) -> None:
        session, shared = self._session, self._shared
        channels = len(session)
        if channels != self._channels:
            shared.channels += channels - self._channels
            self._channels = channels
        deadline = session.deadline
        if deadline != self._deadline:
            self._deadline = deadline
            shared.expiries.watch(self, deadline)
