"""What a running daemon says of itself, asked over HTTP by the command line.

The answers are made in ``health`` and ``telemetry``.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from typing import Any, Final

import msgspec

SECONDS: Final = 2.0
BODY_BYTES_MAX: Final = 1024 * 1024
_SAMPLE: Final = re.compile(r"([a-z_]+)(?:\{.*\})? (\S+)")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses that are read, not bound


def fetch(host: str, port: int, token: str = "") -> dict[str, Any] | None:
    """The body of ``/health`` of the daemon that listens on ``host``; None if none answers within ``SECONDS``.

    ``token``: the daemon's ``metrics_token``.
    """
    try:
        answer = msgspec.json.decode(_get(host, port, "/health", token) or b"")
    except msgspec.DecodeError:
        return None
    # Anybody may listen there: what has no such fields is no daemon of ours.
    return answer if isinstance(answer, dict) and {"status", "version", "node"} <= answer.keys() else None


def fetch_metrics(host: str, port: int, token: str = "") -> dict[str, float] | None:
    """The numbers of ``/metrics`` by name, those with labels added up; None if no daemon answers within ``SECONDS``."""
    found: dict[str, float] = {}
    for line in (_get(host, port, "/metrics", token) or b"").decode(errors="replace").splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            with contextlib.suppress(ValueError):
                found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
    return found if "walstream_connections" in found else None


def _get(host: str, port: int, path: str, token: str) -> bytes | None:
    connection = http.client.HTTPConnection(reachable(host), port, timeout=SECONDS)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().read(BODY_BYTES_MAX)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def reachable(host: str) -> str:
    """An address of this machine for a host that means all of them."""
    return _EVERYWHERE.get(host, host)
