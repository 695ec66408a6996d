"""What clients push to a joined topic beside tokens: broadcasts, presence, moderation, read into values.

What may be done with them is decided by the rooms of the shell, who know the channel and its members.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from walstream.errors import ProtocolError
from walstream.protocol.binary import Encoding
from walstream.protocol.phoenix import ClientMessage, check_nesting, decode_json

TTL_SECONDS_MAX: Final = 10 * 365 * 86_400

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class BroadcastPush(msgspec.Struct, frozen=True):
    """A broadcast as its client meant it. ``payload``: JSON text, bytes where ``binary``.

    ``whole``: the frame's payload, to go on to others unchanged; b"" where it has to be made. ``persist``: whether to
    store it, or for how many seconds.
    """

    event: str
    payload: bytes
    binary: bool = False
    whole: bytes = b""
    persist: bool | int = False


class PresencePush(msgspec.Struct, frozen=True):
    """``meta``: JSON object text to track, or None to track nothing any more."""

    meta: bytes | None


class ModerationPush(msgspec.Struct, frozen=True):
    """``params``: what the action is about, unchecked."""

    action: str
    params: dict[str, object]


class Misread(msgspec.Struct, frozen=True):
    """A push that means nothing. ``status`` and ``response``: its answer."""

    status: str
    response: bytes


Push: TypeAlias = BroadcastPush | PresencePush | ModerationPush

_NOTHING: Final = Misread("ok", b"{}")
_NO_MAP: Final = Misread("error", b'{"reason":"Presence track payload must be a map"}')
_UNKNOWN: Final = Misread("error", b"{}")
_NO_OBJECT: Final = Misread("error", b'{"error":"payload_invalid","reason":"a broadcast is an object"}')
_NO_ACTION: Final = Misread("error", b'{"error":"action_invalid","reason":"moderation names an action"}')


def read_broadcast(message: ClientMessage) -> BroadcastPush | Misread:
    """A ``broadcast`` push, text or binary (Supabase: Realtime protocol, broadcast)."""
    if message.user_event or message.encoding is Encoding.RAW:
        persist = _persist(message.metadata)
        return BroadcastPush(message.user_event, message.payload, message.encoding is Encoding.RAW, persist=persist)
    try:
        members = _decode_members(message.payload)
    except (ValueError, RecursionError):
        return _NO_OBJECT
    event = _text(members.get("event"))
    payload = members.get("payload")
    content = bytes(payload) if payload is not None else b"{}"
    # Official clients take any frame with this member for a table change: nobody may make others do that.
    whole = b"" if "ids" in members else message.payload
    return BroadcastPush(event, content, whole=whole)


def read_presence(message: ClientMessage) -> PresencePush | Misread:
    """A ``presence`` push: track or untrack. Others get it as text, also where it came in a binary frame."""
    try:
        if message.encoding is Encoding.RAW:
            message.payload.decode("utf-8")
            check_nesting(message.payload)
        members = _decode_members(message.payload)
    except (ValueError, RecursionError, ProtocolError):
        return _NOTHING
    if "event" not in members:
        return _NOTHING
    event = _text(members["event"]).lower()
    if event == "untrack":
        return PresencePush(None)
    if event != "track":
        return _UNKNOWN
    meta = bytes(members.get("payload", b"{}")).strip()
    return PresencePush(meta) if meta.startswith(b"{") else _NO_MAP


def read_moderation(message: ClientMessage) -> ModerationPush | Misread:
    """A ``moderation`` push: ``{"action": …}`` and what the action needs."""
    try:
        payload = message.value()
    except ProtocolError:
        payload = None
    if not isinstance(payload, dict) or not isinstance(payload.get("action"), str):
        return _NO_ACTION
    return ModerationPush(payload["action"], {key: value for key, value in payload.items() if key != "action"})


def _persist(metadata: bytes) -> bool | int:
    if not metadata:
        return False
    found = decode_json(metadata)
    wanted = found.get("persist") if isinstance(found, dict) else None
    if isinstance(wanted, dict):
        ttl = wanted.get("ttl")
        if isinstance(ttl, int) and not isinstance(ttl, bool) and 0 < ttl <= TTL_SECONDS_MAX:
            return ttl
        return True
    return wanted is True


def _text(raw: msgspec.Raw | None) -> str:
    try:
        value = decode_json(bytes(raw)) if raw is not None else ""
    except ProtocolError:
        return ""
    return value if isinstance(value, str) else ""
