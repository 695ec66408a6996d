"""One client's connection: its socket, its session, and what the session's effects do to the rest of the node.

The rules are the session's (``walstream.channel.session``); who answers joins stands behind ``Joins``; who is let in is
decided in ``admission``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

import structlog

from walstream.auth.tokens import Claims
from walstream.channel.effects import (
    Close,
    Complaint,
    Effect,
    JoinOutcome,
    JoinRequest,
    JoinRequested,
    JoinSettled,
    Left,
    Send,
    TokenRefreshed,
)
from walstream.channel.session import Session
from walstream.shell.clients.expiries import Expiries
from walstream.shell.clients.sockets import INTERNAL_ERROR, Socket
from walstream.shell.delivery.outbox import Outbox
from walstream.telemetry.log import CHANNEL_JOINED, CHANNEL_LEFT, CHANNEL_REFUSED, HANDLER_FAILED, MESSAGE_REFUSED
from walstream.telemetry.metrics import Metrics

LOGGED_TOPIC_MAX: Final = 200
"""Characters of a client's own text in a log line."""

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


class Connections:
    """What all connections of a node share. ``clock``: seconds since the epoch. ``channels``: joined by all of them."""

    def __init__(
        self, joins: Joins, expiries: Expiries, metrics: Metrics, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.joins = joins
        self.expiries = expiries
        self.metrics = metrics
        self.clock = clock
        self.channels = 0
        metrics.watch("channels", lambda: self.channels)


class Connection:
    """Performs what the session of one socket decides: a ``Handler`` for the edge and a ``JoinOwner`` for ``Joins``."""

    __slots__ = ("_channels", "_complained", "_deadline", "_session", "_shared", "_socket")

    def __init__(self, socket: Socket, session: Session, shared: Connections) -> None:
        self._socket = socket
        self._session = session
        self._shared = shared
        self._deadline: float | None = None
        self._channels = 0
        self._complained: frozenset[str] = frozenset()

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
        self._perform(self._session.leave_all())

    # -- for joins and deadlines

    def join_ready(self, serial: int, outcome: JoinOutcome) -> bool:
        """See ``JoinOwner``."""
        self._from_outside(lambda: self._session.join_ready(serial, outcome, self._shared.clock()))
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

    def tick(self, now: float) -> None:
        """See ``Ticked``."""
        self._deadline = None
        self._from_outside(lambda: self._session.tick(now))

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
        joins = self._shared.joins
        match effect:
            case JoinRequested(request):
                joins.ask(self, request)
            case Left(topic, _, serial):
                log.debug(CHANNEL_LEFT, session_id=self._socket.id, topic=topic[:LOGGED_TOPIC_MAX])
                joins.forget(self, serial)
            case TokenRefreshed(_, _, serial, claims):
                joins.refreshed(self, serial, claims)
            case JoinSettled():
                self._report(effect)
            case Close(code, reason):
                self._socket.close(code, reason)
            case Complaint(code, text):
                self._complain(code, text)
            case Send():
                self._send(effect)

    def _report(self, settled: JoinSettled) -> None:
        metrics = self._shared.metrics
        metrics.joined(settled.result)
        metrics.join_seconds.observe(settled.seconds)
        topic = settled.topic[:LOGGED_TOPIC_MAX]
        if settled.result == "ok":
            log.debug(CHANNEL_JOINED, session_id=self._socket.id, topic=topic, seconds=round(settled.seconds, 6))
        else:
            log.info(CHANNEL_REFUSED, session_id=self._socket.id, topic=topic, reason=settled.reason)

    def _complain(self, code: str, text: str) -> None:
        """The first of each kind is worth a line; a client that goes on like that must not fill the log."""
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
