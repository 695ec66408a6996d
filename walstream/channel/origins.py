"""Which web pages may use the daemon, by the Origin that their browser tells (RFC 6454).

Clients that are no browsers tell none and are not meant; without keys a stricter rule comes first (see ``handshake``).
"""

from __future__ import annotations

import re
from typing import Final

from walstream.errors import ConfigError

ANY: Final = "*"
ORIGIN_MAX: Final = 300
_PATTERN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\*\.)?([^/?#@*\s]+)")
_REPAIR: Final = "a comma list of origins such as https://app.example.org or https://*.example.org, or * for all"


class Origins:
    """The pages that may connect. ``https://*.example.org`` means all names below that one, but not the name itself."""

    def __init__(self, text: str = ANY) -> None:
        """``text``: a comma list; an empty one allows the node's own pages alone. Raises ConfigError."""
        parts = {part.strip().lower() for part in text.split(",") if part.strip()}
        self.is_any = ANY in parts
        self._whole: set[str] = set()
        self._below: set[tuple[str, str]] = set()  # scheme, ending with its dot
        for part in parts - {ANY}:
            match = _PATTERN.fullmatch(part.rstrip("/"))
            if match is None and part != "null":
                raise ConfigError(f"allowed_origins: {part!r} is no origin", repair=_REPAIR)
            if match is not None and match[2]:
                self._below.add((match[1], "." + match[3]))
            else:
                self._whole.add(part.rstrip("/"))

    def become(self, other: Origins) -> None:
        """Allow what ``other`` does from now on."""
        self.is_any, self._whole, self._below = other.is_any, other._whole, other._below

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of ``origin`` may. ``host``: the request's Host header; its own pages may, as the console."""
        if self.is_any or origin is None:
            return True
        asked = origin.strip().lower()
        if len(asked) > ORIGIN_MAX:
            return False
        if asked in self._whole:
            return True
        scheme, slashes, authority = asked.partition("://")
        if not slashes:
            return False
        if host and scheme in ("http", "https") and authority == host.strip().lower():
            return True
        return any(scheme == known and authority.endswith(ending) for known, ending in self._below)

    def allow_header(self, origin: str | None, host: str | None) -> tuple[tuple[str, str], ...]:
        """The headers by which a browser lets that page read an answer; none for a page that may not."""
        if self.is_any:
            return (("access-control-allow-origin", "*"),)
        if origin is None or not self.allows(origin, host) or not _is_header_text(origin):
            return (("vary", "Origin"),)
        return (("access-control-allow-origin", origin.strip()), ("vary", "Origin"))


def _is_header_text(text: str) -> bool:
    return text.isascii() and text.isprintable()
