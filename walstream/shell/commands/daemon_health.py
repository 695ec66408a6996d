"""What a running daemon says of itself, asked over HTTP by the command line.

The answer is made in ``health``.
"""

from __future__ import annotations

import http.client
from typing import Any, Final

import msgspec

SECONDS: Final = 2.0
BODY_BYTES_MAX: Final = 1024 * 1024
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses that are read, not bound


def fetch(host: str, port: int) -> dict[str, Any] | None:
    """The body of ``/health`` of the daemon that listens on ``host``; None if none answers within ``SECONDS``."""
    connection = http.client.HTTPConnection(reachable(host), port, timeout=SECONDS)
    try:
        connection.request("GET", "/health", headers={"accept": "application/json"})
        answer = msgspec.json.decode(connection.getresponse().read(BODY_BYTES_MAX))
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()
    # Anybody may listen there: what has no such fields is no daemon of ours.
    return answer if isinstance(answer, dict) and {"status", "version", "node"} <= answer.keys() else None


def reachable(host: str) -> str:
    """An address of this machine for a host that means all of them."""
    return _EVERYWHERE.get(host, host)
