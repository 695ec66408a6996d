"""The text of a key set (RFC 7517), from a file or an address. Its keys are read in ``walstream.auth.keys``."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path
from typing import Final

from walstream.errors import ConfigError

FETCH_SECONDS: Final = 10.0
BYTES_MAX: Final = 1 << 20


def load_key_set(location: str) -> str:
    """The JSON text at a path or an http(s) address, "" for no location. Blocks; raises ConfigError."""
    if not location:
        return ""
    if location.startswith(("http://", "https://")):
        return _fetch(location)
    try:
        return Path(location).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"jwks: cannot read {location}: {error}", repair="WALSTREAM_JWKS is a path or a URL"
        ) from error


def _fetch(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=FETCH_SECONDS) as answer:  # noqa: S310 - the scheme is checked
            body: bytes = answer.read(BYTES_MAX + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:  # of the last: addresses that are none
        raise ConfigError(
            f"jwks: cannot fetch {address}: {error}", repair="check the address, or use a file"
        ) from error
    if len(body) > BYTES_MAX:
        raise ConfigError(f"jwks: {address} is larger than {BYTES_MAX} bytes")
    return body.decode("utf-8", "replace")
