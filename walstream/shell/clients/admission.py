"""Who is let in, and the connection that a client gets: handshakes become sessions."""

from __future__ import annotations

from walstream.auth.tokens import Verifier
from walstream.channel.handshake import Rejection, Welcome, decide, policy_headers
from walstream.channel.origins import Origins
from walstream.channel.session import Session, SessionLimits
from walstream.config import Config
from walstream.shell.clients.connection import Connection, Connections
from walstream.shell.clients.gate import Gate, Ticket
from walstream.shell.clients.refusals import refused
from walstream.shell.clients.sockets import Admitted, Head, HttpReply, Socket


def session_limits(config: Config) -> SessionLimits:
    """The bounds of one connection, taken from ``config``."""
    return SessionLimits(
        max_channels=config.max_channels_per_connection,
        max_joins_per_second=config.max_joins_per_second,
        max_messages_per_second=config.max_messages_per_second,
        max_presence_calls=config.max_presence_calls,
        presence_window_seconds=config.presence_window_seconds,
    )


class Admission:
    """The edge's ``Admit``: decides about handshakes by their heads.

    A refusal is not delayed: clients back off by themselves, and each one that waits would hold a place among the
    connections that the edge takes at once.
    """

    def __init__(
        self,
        verifier: Verifier,
        limits: SessionLimits,
        shared: Connections,
        gate: Gate | None = None,
        origins: Origins | None = None,
    ) -> None:
        """By default nobody is counted, and every page may connect."""
        self._verifier = verifier
        self.limits = limits  # of connections from now on
        self._shared = shared
        self._gate = gate or Gate()
        self._origins = origins or Origins()

    def __call__(self, head: Head) -> Admitted | HttpReply:
        """See ``Admit``."""
        if not self._origins.allows(head.header("origin"), head.header("host")):
            return refused("origin")
        if not self._gate.may_connect(head.address):
            return refused("address_rate")
        decided = decide(head.query, head.headers, self._verifier, self._shared.clock())
        if isinstance(decided, Rejection):
            return HttpReply(decided.status, decided.body, why="key", code=decided.code)
        claims = decided.claims
        ticket = self._gate.enter(head.address, decided.token, claims.sub)
        if isinstance(ticket, str):
            return refused(f"{ticket}_connections", role=claims.role, user=claims.sub)
        return _Welcomed(self, decided, head, ticket)

    def connect(self, socket: Socket, welcomed: _Welcomed) -> Connection:
        """The connection of a socket that has opened."""
        shared, welcome = self._shared, welcomed.welcome
        session = Session(
            welcome.vsn,
            welcome.claims,
            self._verifier,
            self.limits,
            shared.clock(),
            token=welcome.token,
            node_joins=self._gate.node_joins,
        )
        return Connection(
            socket,
            session,
            shared,
            user_agent=welcomed.user_agent,
            ticket=welcomed.ticket,
            headers=welcomed.headers,
        )


class _Welcomed:
    """A handshake that is let in."""

    __slots__ = ("_admission", "headers", "ticket", "user_agent", "welcome")

    def __init__(self, admission: Admission, welcome: Welcome, head: Head, ticket: Ticket) -> None:
        self._admission = admission
        self.welcome = welcome
        self.user_agent = head.header("user-agent") or ""
        self.headers = policy_headers(head.headers, "x-")
        self.ticket = ticket

    def handler(self, socket: Socket) -> Connection:
        """See ``Admitted``."""
        return self._admission.connect(socket, self)

    def missed(self) -> None:
        """See ``Admitted``."""
        self.ticket.give_back()
