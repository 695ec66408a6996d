"""The bounds of the server's edge as one value, and the operating system's bound on open files.

What each of them is for is told in docs/discussion/backpressure.md.
"""

from __future__ import annotations

import resource
from typing import Final

import msgspec

from walstream.config import Config

PENDING_MAX: Final = 1024
"""Connections that have not said yet what they want, or are being refused; beyond it the backlog waits."""

PLAIN_MAX: Final = 256
"""Plain HTTP requests under way at once."""

PROBES_MAX: Final = 64
"""Requests for /live and /ready under way at once, beside ``PLAIN_MAX``: slow ones must not make the node look dead."""

HURRY_SECONDS: Final = 1.0
"""For a request head, and a TLS handshake, while half of the ``PENDING_MAX`` places are taken."""

FRAMES_PER_MESSAGE: Final = 10
"""Frames that a client may send for each message that it may: for control frames, fragments and what is no message."""

BODY_SECONDS: Final = 10.0
"""For the body of a plain request."""

HTTP_SECONDS: Final = 30.0
"""For one plain request, body and answer included."""

REFUSAL_SECONDS: Final = 2.0
"""For a refused client to take its answer."""

SPARE_FILES: Final = 256
"""Descriptors beside the connections: database, logs, spill files, listeners."""


class EdgeLimits(msgspec.Struct, frozen=True):
    """What the edge needs of the configuration; seconds, bytes and counts as there."""

    max_connections: int = 10_000
    max_frame_bytes: int = 5_000_000
    max_messages_per_second: float = 200
    outbox_bytes: int = 8 * 1024 * 1024
    ping_seconds: float = 25.0
    idle_seconds: float = 60.0
    head_seconds: float = 5.0
    drain_seconds: float = 10.0

    @classmethod
    def of(cls, config: Config) -> EdgeLimits:
        """Taken from ``config``."""
        return cls(**{name: getattr(config, name) for name in cls.__struct_fields__})


def raise_open_files(connections: int) -> int:
    """Let the process open as many files as ``connections`` need, as far as the system allows. Returns the bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + PENDING_MAX + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if raised > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return max(raised, soft)
