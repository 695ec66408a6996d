"""The Phoenix wire format, vsn 1.0.0 (objects) and 2.0.0 (arrays and binary frames), as bytes to values and back.

What an event means and who may send it lives in ``walstream.channel``; binary layouts live in ``binary``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

import msgspec

from walstream.errors import ProtocolError
from walstream.protocol.binary import KIND_BROADCAST_PUSH, KIND_PUSH, Encoding, header_text, read_parts

VSN_1: Final = "1.0.0"
VSN_2: Final = "2.0.0"

NESTING_MAX: Final = 100
"""Levels of arrays and objects in a payload; other ends give up at a few hundred."""

Ref: TypeAlias = str | int | None
"""A client's own counter, opaque to us: echoed, and compared for equality only."""

_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


class ClientMessage(msgspec.Struct, frozen=True):
    """One frame from a client.

    ``payload``: JSON text; the bytes as they came where ``encoding`` is RAW. ``user_event`` and ``metadata`` (JSON
    object text or nothing) come with binary broadcasts only, whose ``event`` is always ``broadcast``.
    """

    topic: str
    event: str
    payload: bytes = b"{}"
    ref: Ref = None
    join_ref: Ref = None
    binary: bool = False
    user_event: str = ""
    metadata: bytes = b""
    encoding: Encoding = Encoding.JSON

    def value(self) -> object:
        """The payload as Python values. Raises ProtocolError where it is no JSON."""
        return decode_json(self.payload)


class Codec(Protocol):
    """One version of the protocol. Encoded frames are text in UTF-8, without a WebSocket header."""

    vsn: str

    def decode(self, data: str | bytes) -> ClientMessage:
        """Read a text frame (str) or a binary frame (bytes). Raises ProtocolError, never anything else."""
        ...

    def encode_reply(self, message: ClientMessage, status: str, response: bytes = b"{}") -> bytes:
        """The ``phx_reply`` to ``message``. ``response``: JSON text of an object."""
        ...

    def encode_push(self, topic: str, event: str, payload: bytes, *, join_ref: Ref = None, ref: Ref = None) -> bytes:
        """A frame that answers nothing. ``payload``: JSON text."""
        ...


class _ObjectFrame(msgspec.Struct):
    topic: str
    event: str
    payload: msgspec.Raw
    ref: Ref
    join_ref: Ref = None


class _ArrayFrame(msgspec.Struct, array_like=True):
    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: msgspec.Raw


_decode_object = msgspec.json.Decoder(_ObjectFrame).decode
_decode_array = msgspec.json.Decoder(_ArrayFrame).decode


class Version1:
    """vsn 1.0.0: objects in text frames. Server frames carry no join ref and always a ref, null or not."""

    vsn = VSN_1

    def decode(self, data: str | bytes) -> ClientMessage:
        """Read a text frame. Raises ProtocolError."""
        if not isinstance(data, str):
            raise ProtocolError("vsn 1.0.0 has no binary frames", repair="connect with vsn=2.0.0")
        try:
            frame = _decode_object(data)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not a vsn 1.0.0 frame: {error}") from error
        return _message(frame)

    def encode_reply(self, message: ClientMessage, status: str, response: bytes = b"{}") -> bytes:
        """The ``phx_reply`` to ``message``."""
        return self.encode_push(message.topic, "phx_reply", _reply(status, response), ref=message.ref)

    def encode_push(self, topic: str, event: str, payload: bytes, *, join_ref: Ref = None, ref: Ref = None) -> bytes:
        """A frame that answers nothing; ``join_ref`` is not part of this version."""
        prefix, _ = frame_parts(VSN_1, topic, event)
        return b"%b%b%b%b}" % (prefix, payload, b',"ref":', _encode(ref))


class Version2:
    """vsn 2.0.0: arrays in text frames, broadcasts in binary frames."""

    vsn = VSN_2

    def decode(self, data: str | bytes) -> ClientMessage:
        """Read a text or a binary frame. Raises ProtocolError."""
        if not isinstance(data, str):
            return _decode_binary(bytes(data))
        try:
            frame = _decode_array(data)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not a vsn 2.0.0 frame: {error}") from error
        return _message(frame)

    def encode_reply(self, message: ClientMessage, status: str, response: bytes = b"{}") -> bytes:
        """The ``phx_reply`` to ``message``."""
        payload = _reply(status, response)
        return self.encode_push(message.topic, "phx_reply", payload, join_ref=message.join_ref, ref=message.ref)

    def encode_push(self, topic: str, event: str, payload: bytes, *, join_ref: Ref = None, ref: Ref = None) -> bytes:
        """A frame that answers nothing."""
        return b"[%b,%b,%b,%b,%b]" % (_encode(join_ref), _encode(ref), _encode(topic), _encode(event), payload)


_CODECS: Final[Mapping[str, Codec]] = {VSN_1: Version1(), VSN_2: Version2()}


def codec(vsn: str) -> Codec:
    """The codec of ``VSN_1`` or ``VSN_2``."""
    return _CODECS[vsn]


def negotiate(vsn: str | None) -> str | None:
    """The version for a connection's ``vsn`` parameter; None for one that nobody speaks."""
    if vsn is None:
        return VSN_1
    return {"1.": VSN_1, "2.": VSN_2}.get(vsn[:2])


def frame_parts(vsn: str, topic: str, event: str) -> tuple[bytes, bytes]:
    """What stands before and after the payload of a push to everybody on a topic, the same for all their sockets."""
    if vsn == VSN_1:
        return b'{"topic":%b,"event":%b,"payload":' % (_encode(topic), _encode(event)), b',"ref":null}'
    return b"[null,null,%b,%b," % (_encode(topic), _encode(event)), b"]"


def change_frame_parts(vsn: str, topic: str) -> tuple[bytes, bytes]:
    """Prefix and suffix of a change's frame: prefix, ``{"ids":[1,2],"data":``, the data object, ``}``, suffix."""
    return frame_parts(vsn, topic, "postgres_changes")


def decode_json(data: bytes) -> object:
    """JSON text as Python values. Raises ProtocolError for anything else, deep nesting and huge numbers included."""
    try:
        value: object = _decode_any(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    return value


def _reply(status: str, response: bytes) -> bytes:
    return b'{"status":"%b","response":%b}' % (status.encode("ascii"), response)


def _message(frame: _ObjectFrame | _ArrayFrame) -> ClientMessage:
    payload = bytes(frame.payload)
    check_nesting(payload)
    return ClientMessage(frame.topic, frame.event, payload, frame.ref, frame.join_ref)


def check_nesting(text: bytes) -> None:
    """Raises ProtocolError for JSON text that is nested deeper than other ends can read."""
    if text.count(b"[") + text.count(b"{") <= NESTING_MAX:
        return
    brackets = _STRINGS.sub(b"", text).translate(None, _NOT_BRACKETS)
    for _ in range(NESTING_MAX):  # each round takes away the innermost level
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise ProtocolError(f"a payload is nested deeper than {NESTING_MAX} levels")


def _decode_binary(data: bytes) -> ClientMessage:
    kind = data[0] if data else None
    if kind == KIND_PUSH:
        parts, payload = read_parts(data, 1, 4, 5)
        join_ref, ref, topic, event = (header_text(part) for part in parts)
        return ClientMessage(topic, event, payload, ref or None, join_ref or None, binary=True, encoding=Encoding.RAW)
    if kind == KIND_BROADCAST_PUSH:
        return _decode_broadcast(data)
    raise ProtocolError("an empty binary frame" if kind is None else f"unknown kind of binary frame: {kind}")


def _decode_broadcast(data: bytes) -> ClientMessage:
    parts, payload = read_parts(data, 1, 5, 7)
    join_ref, ref, topic, user_event = (header_text(part) for part in parts[:4])
    metadata = parts[4]
    try:
        encoding = Encoding(data[6])
    except ValueError as error:
        raise ProtocolError(f"unknown encoding of a binary broadcast: {data[6]}") from error
    if encoding is Encoding.JSON:
        # It is forwarded as it is, and a client that cannot parse it would throw in its message handler.
        decode_json(payload)
        check_nesting(payload)
    if metadata and not isinstance(decode_json(metadata), dict):
        raise ProtocolError("the metadata of a binary broadcast is no object")
    return ClientMessage(
        topic,
        "broadcast",
        payload,
        ref or None,
        join_ref or None,
        binary=True,
        user_event=user_event,
        metadata=metadata,
        encoding=encoding,
    )
