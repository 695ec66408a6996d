"""A viewer as PostgreSQL's session sees one: the settings that policies read, and the claims as a JSON document.

Whoever asks PostgreSQL sets exactly these; whoever answers in its place reads them from here.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple, TypeAlias

import msgspec

from walstream.policy.model import Viewer

CLAIMS: Final = "request.jwt.claims"
SUB: Final = "request.jwt.claim.sub"
ROLE_CLAIM: Final = "request.jwt.claim.role"
ROLE: Final = "role"


class Number(NamedTuple):
    """A JSON number as the token wrote it."""

    text: str


Json: TypeAlias = "str | bool | Number | list[Json] | dict[str, Json] | None"


def session_settings(viewer: Viewer) -> dict[str, str]:
    """Settings of a transaction in which PostgreSQL evaluates policies for the viewer.

    ``request.jwt.claim.sub`` is "" where the claim is missing or no text. Values may hold what PostgreSQL refuses.
    """
    try:
        document = msgspec.json.decode(viewer.claims)
    except ValueError:
        document = None
    sub = document.get("sub") if isinstance(document, dict) else None
    return {
        ROLE: viewer.role,
        CLAIMS: viewer.claims,
        SUB: sub if isinstance(sub, str) and "\0" not in sub else "",
        ROLE_CLAIM: viewer.role,
    }


def parse(text: str) -> Json:
    """A JSON text. Raises ValueError, also for equal keys.

    Of those PostgreSQL takes the last one, but reads what the others hold and may stumble over it.
    """
    try:
        document: Json = _decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return document


def _no_constant(word: str) -> Json:
    raise ValueError(f"{word} is no JSON")


def _object(pairs: list[tuple[str, Json]]) -> Json:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("equal keys")
    return members


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=_no_constant
).decode
