"""The listener's certificate and key: read at the start, and again when their files have changed.

What is done with a context is ``delivery/tls``'s and ``tls_stream``'s business.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from walstream.errors import ConfigError
from walstream.telemetry.log import CERTIFICATE_LOADED, CERTIFICATE_REFUSED

LOOK_SECONDS: Final = 1.0
"""How often the files are looked at while connections come in."""

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_REPAIR: Final = (
    "tls_cert is a PEM file with the certificate and then those that lead to its authority, tls_key one with its "
    "private key, without a passphrase"
)

log = structlog.get_logger()


class TlsFiles:
    """Hands out the context for the next connection. ``clock``: monotonic seconds."""

    def __init__(self, cert: str, key: str, *, clock: Callable[[], float] = trio.current_time) -> None:
        """Reads files. Raises ConfigError where they are no certificate and its key."""
        self._cert = cert
        self._key = key
        self._clock = clock
        self._looked_at: float | None = None
        self._seen = self._state()
        self._context = make_context(cert, key)

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Looks at the files now and then; what cannot be used is logged, and not."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            if self._state() != self._seen:
                self.reload()
        return self._context

    def move(self, cert: str, key: str) -> None:
        """Go by other files from now on, and read them."""
        self._cert, self._key = cert, key
        self.reload()

    def reload(self) -> None:
        """Read the files again. Connections that are open keep what they have."""
        self._seen = self._state()
        try:
            self._context = make_context(self._cert, self._key)
        except ConfigError as error:
            log.warning(CERTIFICATE_REFUSED, reason=error.message, repair=error.repair)
        else:
            log.info(CERTIFICATE_LOADED, file=self._cert)

    def _state(self) -> tuple[object, ...]:
        return (_state_of(self._cert), _state_of(self._key))


def make_context(cert: str, key: str) -> ssl.SSLContext:
    """A server's context: TLS 1.2 with forward secrecy, and 1.3. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"tls_cert, tls_key: cannot use {cert} and {key}: {text}", repair=_REPAIR) from error
    return context


def _no_passphrase() -> str:
    """Instead of asking at a terminal that a daemon does not have."""
    raise ValueError("the key has a passphrase")


def _state_of(name: str) -> tuple[int, int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
