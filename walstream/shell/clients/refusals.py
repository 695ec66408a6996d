"""Why clients are refused: the reasons that are counted and written down, and what each client is told.

Who decides is ``admission``, ``edge``, ``http_limits`` and the sessions; the counts are ``telemetry/metrics``'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from walstream.channel.rate import Bucket
from walstream.shell.clients.sockets import Head, HttpReply
from walstream.telemetry.log import CONNECTION_REFUSED
from walstream.telemetry.metrics import Metrics

LINES_PER_SECOND: Final = 20.0
LINES_AT_ONCE: Final = 200.0
"""Lines about refusals: whoever is refused again and again must not fill the log."""

SHOWN_MAX: Final = 200
"""Characters of a client's own text in a line."""

log = structlog.get_logger()


class _Told(NamedTuple):
    status: int
    error: str  # as the reference server words it, where it has such a refusal
    message: str
    retry_seconds: int = 0


_TOLD: Final[Mapping[str, _Told]] = {
    "origin": _Told(
        403, "Origin not allowed", "pages of this origin may not connect: add it to WALSTREAM_ALLOWED_ORIGINS"
    ),
    "node_connections": _Told(429, "Too many connected users", "the node has as many connections as it may", 5),
    "address_connections": _Told(
        429, "Too many connected users", "this address has as many as it may (max_connections_per_address)", 5
    ),
    "key_connections": _Told(
        429, "Too many connected users", "this key has as many as it may (max_connections_per_key)", 5
    ),
    "user_connections": _Told(
        429, "Too many connected users", "this user has as many as it may (max_connections_per_user)", 5
    ),
    "address_rate": _Told(
        429, "Too many joins per second",
        "this address connects too often (max_connects_per_second_per_address)", 1,
    ),
    "draining": _Told(503, "Server is shutting down", "connect again in a moment", 1),
    "busy": _Told(503, "Too many requests under way", "try again in a moment", 1),
}  # fmt: skip

COMPLAINTS: Final[Mapping[str, str]] = {
    "MessagePerSecondRateLimitReached": "messages",
    "ClientPresenceRateLimitReached": "presence",
}
"""The reason that is counted for a complaint about messages, by its code."""

REFUSED_JOINS: Final[Mapping[str, str]] = {
    "ClientJoinRateLimitReached": "joins",
    "ChannelRateLimitReached": "channels",
    "ConnectionRateLimitReached": "user_connections",
}
"""The reason that is counted for a refused join, by its code."""


def refused(reason: str, *, role: str = "", user: str = "") -> HttpReply:
    """The answer to a handshake or request that is refused for a reason of ``_TOLD``."""
    told = _TOLD[reason]
    body = msgspec.json.encode({"error": told.error, "code": reason, "message": told.message})
    headers = (("retry-after", str(told.retry_seconds)),) if told.retry_seconds else ()
    return HttpReply(told.status, body, headers, why=reason, role=role, user=user)


class Ledger:
    """Counts refusals, and writes down who was refused: address, origin, reason, role and user, never a key."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lines = Bucket(LINES_PER_SECOND, LINES_AT_ONCE, 0.0)
        self._left_out = 0

    def refused(self, reply: HttpReply, peer: str, head: Head | None, now: float) -> None:
        """One handshake or request. ``head``: None where none was understood. ``now``: monotonic seconds."""
        self._metrics.refused(reply.why)
        if self._lines.take(now) is None:
            self._left_out += 1
            return
        shown: dict[str, Any] = {"peer": peer, "status": reply.status, "reason": reply.why}
        if head is not None:
            shown |= {"path": head.path[:SHOWN_MAX], "origin": (head.header("origin") or "")[:SHOWN_MAX]}
        shown |= {"code": reply.code, "role": reply.role[:SHOWN_MAX], "user": reply.user[:SHOWN_MAX]}
        if self._left_out:
            shown["left_out"], self._left_out = self._left_out, 0
        log.info(CONNECTION_REFUSED, **{name: value for name, value in shown.items() if value != ""})
