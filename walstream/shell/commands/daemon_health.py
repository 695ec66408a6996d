"""What a running daemon says of itself, asked over HTTP by the command line.

The answers are made in ``health`` and ``telemetry``.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from pathlib import Path
from typing import Any, Final

import msgspec

from walstream.config import Config
from walstream.errors import ConfigError

SECONDS: Final = 2.0
BODY_BYTES_MAX: Final = 1024 * 1024
_END: Final = "-----END CERTIFICATE-----\n"
_SAMPLE: Final = re.compile(r"([a-z_]+)(?:\{.*\})? (\S+)")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses that are read, not bound


def fetch(config: Config) -> dict[str, Any] | None:
    """The body of ``/health`` of the daemon that ``config`` is for; None if none answers within ``SECONDS``."""
    try:
        answer = msgspec.json.decode(_get(config, "/health") or b"")
    except msgspec.DecodeError:
        return None
    # Anybody may listen there: what has no such fields is no daemon of ours.
    return answer if isinstance(answer, dict) and {"status", "version", "node"} <= answer.keys() else None


def fetch_metrics(config: Config) -> dict[str, float] | None:
    """The numbers of ``/metrics`` by name, those with labels added up; None if no daemon answers within ``SECONDS``."""
    found: dict[str, float] = {}
    for line in (_get(config, "/metrics") or b"").decode(errors="replace").splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            with contextlib.suppress(ValueError):
                found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
    return found if "walstream_connections" in found else None


def _get(config: Config, path: str) -> bytes | None:
    token = config.metrics_token
    try:
        connection = _connection(config)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
            return connection.getresponse().read(BODY_BYTES_MAX)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ConfigError):
        return None


def _connection(config: Config) -> http.client.HTTPConnection:
    host = reachable(config.host)
    context = tls_context(config)
    if context is None:
        return http.client.HTTPConnection(host, config.port, timeout=SECONDS)
    return http.client.HTTPSConnection(host, config.port, timeout=SECONDS, context=context)


def tls_context(config: Config) -> ssl.SSLContext | None:
    """For a client of the daemon: believes its very certificate, whatever its names; None where it speaks no TLS.

    Reads a file. Raises ConfigError.
    """
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # ``listen`` is an address; only one certificate is believed anyway
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        text = Path(config.tls_cert).read_text(encoding="ascii", errors="replace")
        context.load_verify_locations(cadata=text.partition(_END)[0] + _END)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_cert: cannot read {config.tls_cert}: {error}") from error
    return context


def reachable(host: str) -> str:
    """An address of this machine for a host that means all of them."""
    return _EVERYWHERE.get(host, host)
