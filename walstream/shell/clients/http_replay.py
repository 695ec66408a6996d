"""HTTP replay: a room's stored messages from a point in time on, oldest first, page by page.

What is kept and for how long is told in docs/discussion/stored-messages.md.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from walstream.auth.tokens import Claims, Verifier
from walstream.channel.handshake import Rejection, policy_headers
from walstream.channel.since import Position, parse_since
from walstream.channel.topic import PREFIX
from walstream.errors import WalstreamError
from walstream.rooms import RoomKey
from walstream.shell.channels.directory import FORBIDDEN, Directory
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.seats import Seat
from walstream.shell.clients.http_app import json_response
from walstream.shell.clients.http_requests import PREFIXES, claims_of, path_parts, refusal
from walstream.shell.database.message_rows import Kept, Page

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000

_PATH: Final = "/api/realtime/replay/"
_FORBIDDEN_REPAIR: Final = (
    "private channels are for members (walstream channel join) and whom a SELECT policy on realtime.messages lets in"
)
_SINCE_REPAIR: Final = (
    "since is UNIX seconds or milliseconds, ISO 8601 such as 2026-01-30T10:00:00Z, or the cursor of an earlier page"
)


def routes(
    directory: Directory, store: MessageStore, verifier: Verifier, *, clock: Callable[[], float] = time.time
) -> Sequence[BaseRoute]:
    """The routes. ``clock``: seconds since the epoch."""
    answer = partial(_replay, directory, store, partial(claims_of, verifier=verifier, clock=clock))
    return [Route(f"{prefix}{_PATH}{{rest:path}}", answer, methods=["GET"]) for prefix in PREFIXES]


async def _replay(
    directory: Directory, store: MessageStore, claims_for: Callable[[Request], Claims | Rejection], request: Request
) -> Response:
    parts = path_parts(request, _PATH)
    name = "/".join(parts) if parts is not None else ""
    if not name:
        raise HTTPException(404)
    claims = claims_for(request)
    if isinstance(claims, Rejection):
        return _rejected(claims)
    query = request.query_params
    try:
        after = parse_since(query.get("since") or "0")
    except ValueError:
        return refusal(400, "invalid_since", f"since: {query['since'][:100]!r} is no point in time", _SINCE_REPAIR)
    said = query.get("limit", str(LIMIT_DEFAULT))
    if not (said.isascii() and said.isdecimal()) or len(said) > 9 or not 0 < int(said) <= LIMIT_MAX:
        return refusal(400, "invalid_limit", f"limit: {said[:100]!r}", f"limit is a whole number from 1 to {LIMIT_MAX}")
    wanted = _room(directory, name, private=query.get("private") == "true")
    headers = policy_headers(request.headers.items())
    seat = await directory.seat(Seat(wanted, claims, headers=headers))
    if isinstance(seat, str):
        return _no_seat(seat)
    if not seat.reading.broadcast:
        directory.leave(seat)
        return _no_seat(FORBIDDEN.format(wanted.subtopic))
    try:
        page = await store.page(seat.room, after, int(said))
    except WalstreamError as error:
        return refusal(503, error.code, "the database does not answer", "try again in a moment")
    finally:
        directory.leave(seat)
    if seat.channel is None and not page.messages and after == Position(0):
        return refusal(
            404, "not_found", f"no channel {name[:200]!r}, and no stored messages of that topic",
            "register it: walstream channel create",
        )  # fmt: skip
    return _page(wanted.subtopic, page)


def _room(directory: Directory, name: str, *, private: bool) -> RoomKey:
    """A room by the channel's slug or id, or by its topic with or without the prefix."""
    if directory.find(name) is None:
        channel = directory.by_id(name.lower()) or directory.find(name.removeprefix(PREFIX))
        if channel is not None:
            return channel.room
        name = name.removeprefix(PREFIX)
    return RoomKey(name, private)


def _rejected(rejection: Rejection) -> Response:
    text = msgspec.json.decode(rejection.body)["error"] if rejection.body else "Unauthorized"
    repair = "send a token as Authorization: Bearer, or a key as apikey"
    return refusal(rejection.status, "unauthorized", text, repair if rejection.status == 401 else "")


def _no_seat(reason: str) -> Response:
    code, _, text = reason.partition(": ")
    if code == "Unauthorized":
        return refusal(403, "forbidden", text, _FORBIDDEN_REPAIR)
    if code == "PrivateOnly":
        return refusal(403, "private_only", text, "name a private channel, or add private=true")
    return refusal(503, "database_unreachable", text, "try again in a moment")


def _page(topic: str, page: Page) -> Response:
    last = str(page.messages[-1].position) if page.messages else None
    return json_response(
        {
            "channel": topic,
            "messages": [_shown(kept) for kept in page.messages],
            "next": last if page.has_more else None,
            "last": last,
        }
    )


def _shown(kept: Kept) -> dict[str, object]:
    broadcast = kept.broadcast
    shown: dict[str, object] = {
        "id": broadcast.id,
        "seq": broadcast.seq,
        "event": broadcast.event,
        "event_type": broadcast.event,
        "payload": None if broadcast.binary else msgspec.Raw(broadcast.payload),
        "sender_id": kept.sender,
        "sent_at": broadcast.sent_at,
    }
    if broadcast.binary:
        shown["binary_payload"] = base64.b64encode(broadcast.payload).decode()
    return shown
