"""REST broadcast: many messages in one request, or one message whose topic and event are in the path.

Paths, statuses and bodies are Supabase Realtime's; official clients read them. Who may send what, storing and
delivering are the ``Publisher``'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from walstream.auth.tokens import Claims, Verifier
from walstream.channel.handshake import Rejection, policy_headers
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.clients.http_app import json_response
from walstream.shell.clients.http_requests import PREFIXES, BodyTooLarge, body_of, claims_of, path_parts

BATCH_MAX: Final = 1000
"""Messages of one request."""

BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
TOPICS_AT_ONCE: Final = 50
NAME_MAX: Final = 1000
"""Characters of a topic, an event or an id."""

TTL_SECONDS_MAX: Final = 10 * 366 * 86_400

_PATH: Final = "/api/broadcast"
_BLANK: Final = "can't be blank"
_INVALID: Final = "is invalid"
_TOO_LARGE: Final = "Payload size exceeds tenant limit"
_MEDIA_TYPE: Final = "Unsupported Media Type. Use application/json or application/octet-stream"
_UNAUTHORIZED: Final = {"message": "Unauthorized"}
_TOO_MANY: Final = "Too many messages to broadcast, please reduce the batch size"

_TEXTS: Final[Mapping[str, tuple[int, str]]] = {
    "unauthorized": (403, "Unauthorized"),
    "private_only": (403, "This project only allows private channels"),
    "unable_to_set_policies": (422, "Unable to authorize broadcast"),
    "rls_policy_error": (422, "RLS policy error"),
    "query_canceled": (422, "Query canceled"),
    "missing_partition": (422, "Missing messages partition"),
    "unable_to_connect_to_project": (422, "Tenant database unavailable"),
    "increase_connection_pool": (429, "Connection pool exhausted"),
    "rate": (429, "Too many requests"),
    "invalid_persist_ttl": (422, "Invalid persist ttl"),
    "channel_not_found": (422, "The channel was deleted"),
    "payload_invalid": (422, "The payload cannot be stored"),
}

_encode: Final = msgspec.json.Encoder().encode
_Body: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_List: Final = msgspec.json.Decoder(list[msgspec.Raw])
_Text: Final = msgspec.json.Decoder(str)
_ABSENT: Final = msgspec.Raw(b"null")

Errors = dict[str, list[str]]


class Publisher(Protocol):
    """Sends a broadcast as whoever has the claims."""

    async def publish(
        self, claims: Claims, broadcast: Broadcast, *, persist: bool | int = False, headers: str = "{}"
    ) -> str:
        """Send, and store first where the channel or ``persist`` says so; an int: for so many seconds.

        ``headers``: the request's, for policies: JSON object text.
        Returns "" or an error code: one of ``_TEXTS``, ``payload_size_exceeded``, or another with a text after a colon.
        """
        ...

    async def publish_all(self, claims: Claims, broadcasts: Sequence[Broadcast], *, headers: str = "{}") -> list[str]:
        """Send messages to one room, in their order. Returns what ``publish`` does, for each."""
        ...


def routes(
    publisher: Publisher, verifier: Verifier, *, max_message_bytes: int, clock: Callable[[], float] = time.time
) -> Sequence[BaseRoute]:
    """The routes. ``clock``: seconds since the epoch."""
    handlers = _Handlers(publisher, verifier, max_message_bytes, clock)
    found: list[BaseRoute] = []
    for prefix in PREFIXES:
        found.append(Route(f"{prefix}{_PATH}", handlers.batch, methods=["POST"]))
        found.append(Route(f"{prefix}{_PATH}/{{rest:path}}", handlers.single, methods=["POST"]))
    return found


class _Handlers:
    def __init__(
        self, publisher: Publisher, verifier: Verifier, max_message_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._publisher = publisher
        self._verifier = verifier
        self._max = max_message_bytes
        self._clock = clock

    # -- one message

    async def single(self, request: Request) -> Response:
        parts = path_parts(request, _PATH + "/")
        if parts is None or len(parts) != 3 or parts[1] != "events" or not parts[0] or not parts[2]:
            raise HTTPException(404)
        claims = claims_of(request, self._verifier, self._clock)
        if isinstance(claims, Rejection):
            return json_response(_UNAUTHORIZED, 401)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_binary = kind == "application/octet-stream"
        if not is_binary and kind not in ("", "application/json") and not kind.endswith("+json"):
            return json_response({"error": _MEDIA_TYPE}, 415)
        persist = persist_of(request.query_params)
        if persist is None:
            return _answer("invalid_persist_ttl")
        if max(len(parts[0]), len(parts[2])) > NAME_MAX:
            return json_response({"errors": {"topic" if len(parts[0]) > NAME_MAX else "event": [_INVALID]}}, 422)
        try:
            payload = await body_of(request, self._max)
        except BodyTooLarge:
            return _answer("payload_size_exceeded")
        if not is_binary:
            checked = json_payload(payload)
            if checked is None:
                return json_response({"message": "The body is not JSON"}, 400)
            payload = checked
        room = RoomKey(parts[0], request.query_params.get("private") == "true")
        broadcast = Broadcast(room=room, event=parts[2], payload=payload, binary=is_binary)
        headers = policy_headers(request.headers.items())
        return _answer(await self._publisher.publish(claims, broadcast, persist=persist, headers=headers))

    # -- many messages

    async def batch(self, request: Request) -> Response:
        claims = claims_of(request, self._verifier, self._clock)
        if isinstance(claims, Rejection):
            return json_response(_UNAUTHORIZED, 401)
        try:
            body = await body_of(request, max(BATCH_BYTES_MAX, 2 * self._max))
        except BodyTooLarge:
            return json_response({"message": "The request is too large"}, 413)
        read = read_batch(body, self._max)
        if isinstance(read, str):
            return json_response({"message": read}, 400)
        broadcasts, errors = read
        if errors:
            return json_response({"errors": {"messages": errors}}, 422)
        if len(broadcasts) > BATCH_MAX:
            return json_response({"message": _TOO_MANY}, 429)
        headers = policy_headers(request.headers.items())
        return _batch_answer(await self._publish_all(claims, broadcasts, headers))

    async def _publish_all(self, claims: Claims, broadcasts: Sequence[Broadcast], headers: str) -> list[str]:
        """The codes of all. Those of a room are sent in their order."""
        codes = [""] * len(broadcasts)
        by_room: dict[RoomKey, list[int]] = {}
        for number, broadcast in enumerate(broadcasts):
            by_room.setdefault(broadcast.room, []).append(number)
        limiter = trio.CapacityLimiter(TOPICS_AT_ONCE)

        async def send(numbers: Sequence[int]) -> None:
            async with limiter:
                some = [broadcasts[number] for number in numbers]
                found = await self._publisher.publish_all(claims, some, headers=headers)
            for number, code in zip(numbers, found, strict=True):
                codes[number] = code

        if len(by_room) == 1:
            await send(range(len(broadcasts)))
            return codes
        async with trio.open_nursery() as nursery:
            for numbers in by_room.values():
                nursery.start_soon(send, numbers)
        return codes


def _answer(code: str) -> Response:
    if not code:
        return Response(status_code=202)
    if code == "payload_size_exceeded":
        return json_response({"errors": {"payload": [_TOO_LARGE]}}, 422)
    name, _, text = code.partition(":")
    status, message = _TEXTS.get(name, (422, text.strip() or name))
    if name in _TEXTS and text:
        message = text.strip()
    body = {"message": message} if name == "unauthorized" else {"message": message, "error": name}
    return json_response(body, status)


def _batch_answer(codes: Sequence[str]) -> Response:
    """What may not be sent is passed over, as by Supabase; anything else that failed is told."""
    failed = [code for code in codes if code and code != "unauthorized"]
    if not failed:
        return Response(status_code=202)
    if all(code == "payload_size_exceeded" for code in failed):
        errors: list[Errors] = [{"payload": [_TOO_LARGE]} if code in failed else {} for code in codes]
        return json_response({"errors": {"messages": errors}}, 422)
    return _answer(next(code for code in failed if code != "payload_size_exceeded"))


def persist_of(query: Mapping[str, str]) -> bool | int | None:
    """What the query says of storing: whether, or for how many seconds. None for what it cannot mean."""
    ttl = query.get("persist[ttl]")
    if ttl is not None:
        if not (ttl.isascii() and ttl.isdecimal()) or len(ttl) > 12 or not 0 < int(ttl) <= TTL_SECONDS_MAX:
            return None
        return int(ttl)
    said = query.get("persist", "false")
    return {"true": True, "false": False}.get(said)


def json_payload(body: bytes) -> bytes | None:
    """A body as the payload that receivers get; None for what is not JSON. What is no object is put into one."""
    if not body.strip():
        return b"{}"
    try:
        body.decode()
        value = msgspec.json.decode(body, type=msgspec.Raw)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
    text = bytes(value)
    return text if text.startswith(b"{") else b'{"_json":%b}' % text


def read_batch(body: bytes, max_message_bytes: int) -> tuple[list[Broadcast], list[Errors] | list[str]] | str:
    """The messages of a batch, and what is wrong with them: one object per message, or texts about the list.

    A text instead where the body is not JSON, or no object.
    """
    try:
        body.decode()
        fields = _Body.decode(body)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return "The body is not a JSON object"
    told = fields.get("messages", _ABSENT)
    if bytes(told) in (b"null", b"[]"):
        return [], [_BLANK]
    try:
        items = [_Body.decode(item) for item in _List.decode(told)]
    except (msgspec.DecodeError, RecursionError):
        return [], [_BLANK if bytes(told).strip(b"[] \t\r\n") == b"" else _INVALID]
    if not items:
        return [], [_BLANK]
    broadcasts: list[Broadcast] = []
    errors: list[Errors] = []
    for item in items:
        broadcast, wrong = _message(item, max_message_bytes)
        errors.append(wrong)
        if broadcast is not None:
            broadcasts.append(broadcast)
    return broadcasts, errors if any(errors) else []


def _message(item: Mapping[str, Any], max_message_bytes: int) -> tuple[Broadcast | None, Errors]:
    errors: Errors = {}
    topic = _name(item.get("topic", _ABSENT), "topic", errors)
    event = _name(item.get("event", _ABSENT), "event", errors)
    payload = bytes(item.get("payload", _ABSENT))
    if payload == b"null":
        errors["payload"] = [_BLANK]
    elif not payload.startswith(b"{"):
        errors["payload"] = [_INVALID]
    elif len(payload) > max_message_bytes:
        errors["payload"] = [_TOO_LARGE]
    private = bytes(item.get("private", b"false"))
    if private not in _BOOLEANS:
        errors["private"] = [_INVALID]
    id_ = _name(item["id"], "id", errors) if bytes(item.get("id", _ABSENT)) != b"null" else ""
    if errors:
        return None, errors
    room = RoomKey(topic, _BOOLEANS[private])
    return Broadcast(room=room, event=event, payload=payload, id=id_), errors


_BOOLEANS: Final[Mapping[bytes, bool]] = {
    b"true": True, b'"true"': True, b"false": False, b'"false"': False, b"null": False,
}  # fmt: skip


def _name(value: msgspec.Raw, name: str, errors: Errors) -> str:
    """A text that has to be there; "" with an entry in ``errors`` where it is not."""
    if bytes(value) == b"null":
        errors[name] = [_BLANK]
        return ""
    try:
        text = _Text.decode(value)
    except msgspec.DecodeError:
        errors[name] = [_INVALID]
        return ""
    if not text.strip():
        errors[name] = [_BLANK]
    elif len(text) > NAME_MAX:
        errors[name] = [_INVALID]
    return text
