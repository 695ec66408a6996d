"""The text of a key set (RFC 7517), from a file or an address, again when it may have changed.

Its keys are read in ``walstream.auth.keys``; when to look again is ``credentials``' to decide.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from walstream.errors import ConfigError

FETCH_SECONDS: Final = 10.0
BYTES_MAX: Final = 1 << 20

FILE_SECONDS: Final = 5.0
"""Between looks at a file."""

FRESH_SECONDS: Final = 300.0
FRESH_SECONDS_MIN: Final = 10.0
FRESH_SECONDS_MAX: Final = 3600.0
"""How long an address's answer counts: what it says itself, within bounds."""

_MAX_AGE: Final = re.compile(r"\bmax-age\s*=\s*\"?(\d{1,9})", re.ASCII | re.IGNORECASE)


class KeySetSource:
    """A path or an http(s) address. ``load`` blocks; the rest does not."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.is_address = location.startswith(("http://", "https://"))
        self.fresh_seconds = FRESH_SECONDS if self.is_address else FILE_SECONDS
        self._seen: object = None  # what tells one version from another

    def load(self) -> str | None:
        """The JSON text, None while it is the one that ``load`` returned last. Raises ConfigError."""
        return self._fetch() if self.is_address else self._read()

    def _read(self) -> str | None:
        try:
            text, seen = read_if_changed(Path(self.location), self._seen)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"jwks: cannot read {self.location}: {error}", repair="WALSTREAM_JWKS is a path or a URL"
            ) from error
        self._seen = seen
        return text

    def _fetch(self) -> str | None:
        address = self.location
        try:
            request = urllib.request.Request(address)  # noqa: S310 - the scheme is checked
            if isinstance(self._seen, str):
                request.add_header("If-None-Match", self._seen)
            with _open(request) as answer:
                body: bytes = answer.read(BYTES_MAX + 1)
                tag, told = answer.headers.get("ETag"), answer.headers.get("Cache-Control") or ""
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.NOT_MODIFIED:
                return None
            raise _unfetched(address, error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # of the last: addresses that are none
            raise _unfetched(address, error) from error
        if len(body) > BYTES_MAX:
            raise ConfigError(f"jwks: {address} is larger than {BYTES_MAX} bytes")
        self._seen = tag
        age = _MAX_AGE.search(told)
        self.fresh_seconds = (
            min(max(float(age[1]), FRESH_SECONDS_MIN), FRESH_SECONDS_MAX) if age is not None else FRESH_SECONDS
        )
        return body.decode("utf-8", "replace")


def read_if_changed(path: Path, seen: object) -> tuple[str | None, object]:
    """A file's text and what tells this version of it, or no text where that is ``seen``. Blocks.

    Raises OSError and UnicodeDecodeError.
    """
    found = path.stat()
    version = (found.st_ino, found.st_mtime_ns, found.st_size)
    return (None, seen) if version == seen else (path.read_text(encoding="utf-8"), version)


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows no redirect out of HTTPS: what answers there could be anybody."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        target = str(rest[-1])
        if not target.startswith("https://" if req.type == "https" else ("http://", "https://")):
            raise ValueError(f"it leads to {target[:200]}, which is less safe")
        return super().redirect_request(req, *rest)


def _open(request: urllib.request.Request) -> Any:
    # Certificates are verified: that is what an opener does unless it is told otherwise.
    return urllib.request.build_opener(_SameSafety).open(request, timeout=FETCH_SECONDS)


def _unfetched(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"jwks: cannot fetch {address}: {error}", repair="check the address, or use a file")
