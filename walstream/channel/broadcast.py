"""A broadcast's frames: encoded once for every kind of socket that may hear it."""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from walstream.channel.topic import PREFIX
from walstream.protocol.binary import Encoding, broadcast_frame
from walstream.protocol.phoenix import VSN_1, VSN_2, frame_parts
from walstream.protocol.websocket import BINARY, frame
from walstream.rooms import Broadcast, RoomKey

EVENT: Final = "broadcast"


class Ear(enum.IntEnum):
    """What a socket can hear. BINARY: vsn 2 with binary frames; the ``phoenix`` package crashes on those."""

    V1 = 0
    V2 = 1
    BINARY = 2

    @classmethod
    def of(cls, vsn: str, *, binary: bool) -> Ear:
        """The kind of a socket. ``binary``: its client is one of Supabase's."""
        if vsn == VSN_1:
            return cls.V1
        return cls.BINARY if binary else cls.V2


Frames: TypeAlias = tuple[bytes, bytes, bytes]
"""Whole WebSocket frames by ``Ear``; b"" for who cannot hear the message."""

_encode = msgspec.json.Encoder().encode


def meta(broadcast: Broadcast, *, replayed: bool = False) -> bytes:
    """The ``meta`` member: JSON object text, b"" where there is nothing to tell."""
    found: dict[str, object] = {"replayed": True} if replayed else {}
    if broadcast.id:
        found["id"] = broadcast.id
    if broadcast.seq is not None:
        found["seq"] = broadcast.seq
    if broadcast.sent_at:
        found["sent_at"] = broadcast.sent_at
    return _encode(found) if found else b""


def payload(broadcast: Broadcast, *, replayed: bool = False) -> bytes:
    """The frame payload of a broadcast that is not binary, JSON text."""
    if broadcast.whole:
        return broadcast.whole
    told = meta(broadcast, replayed=replayed)
    more = b',"meta":' + told if told else b""
    return b'{"type":"broadcast","event":%b,"payload":%b%b}' % (_encode(broadcast.event), broadcast.payload, more)


def frames(broadcast: Broadcast, *, replayed: bool = False) -> Frames:
    """The frames of a broadcast. Bytes reach only who can hear them; text reaches everybody as text."""
    if not broadcast.binary:
        return text_frames(broadcast.room, EVENT, payload(broadcast, replayed=replayed))
    told = meta(broadcast, replayed=replayed)
    data = broadcast_frame(
        PREFIX + broadcast.room.subtopic, broadcast.event, broadcast.payload, encoding=Encoding.RAW, metadata=told
    )
    return b"", b"", frame(data, BINARY) if data is not None else b""


def text_frames(room: RoomKey, event: str, content: bytes) -> Frames:
    """The frames of a push to a room's every member. ``content``: JSON text."""
    before, after = _parts(VSN_1, room, event)
    first = frame(before + content + after)
    before, after = _parts(VSN_2, room, event)
    second = frame(before + content + after)
    return first, second, second


def _parts(vsn: str, room: RoomKey, event: str) -> tuple[bytes, bytes]:
    return frame_parts(vsn, PREFIX + room.subtopic, event)
