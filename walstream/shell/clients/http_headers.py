"""Headers that every HTTP answer carries, whoever makes it: what browsers may do with it beside reading it.

Who may read one is told by ``channel/origins``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

Pairs: TypeAlias = Sequence[tuple[str, str]]

HSTS_SECONDS: Final = 31_536_000

_ALWAYS: Final = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
)
_NO_PAGE: Final = ("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
_HSTS: Final = ("strict-transport-security", f"max-age={HSTS_SECONDS}")


def security_headers(*, https: bool, has_policy: bool = False) -> list[tuple[str, str]]:
    """The headers. ``has_policy``: the answer is a page that brings a policy of its own."""
    return [*_ALWAYS, *(() if has_policy else (_NO_PAGE,)), *((_HSTS,) if https else ())]
