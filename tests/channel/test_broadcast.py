"""Frames of broadcasts, per kind of socket."""

from __future__ import annotations

import json

import pytest

from walstream.channel.broadcast import Ear, frames, text_frames
from walstream.protocol.phoenix import VSN_1, VSN_2
from walstream.rooms import Broadcast, RoomKey

ROOM = RoomKey("room1")


def content(frame: bytes) -> bytes:
    """The payload of a short unmasked frame."""
    length = frame[1]
    return frame[2:] if length < 126 else frame[4:]


def test_sockets_hear_by_version_and_client() -> None:
    assert Ear.of(VSN_1, binary=True) is Ear.V1
    assert Ear.of(VSN_2, binary=False) is Ear.V2
    assert Ear.of(VSN_2, binary=True) is Ear.BINARY


def test_text_goes_to_everybody_as_text() -> None:
    made = frames(Broadcast(room=ROOM, event='e"', payload=b"[1.50]"))
    body = {"type": "broadcast", "event": 'e"', "payload": [1.5]}
    v1 = {"topic": "realtime:room1", "event": "broadcast", "payload": body, "ref": None}
    assert json.loads(content(made[Ear.V1])) == v1
    assert json.loads(content(made[Ear.V2])) == [None, None, "realtime:room1", "broadcast", body]
    assert made[Ear.BINARY] is made[Ear.V2]
    assert made[Ear.V2][0] == 0x81
    assert b"[1.50]" in made[Ear.V1]


def test_the_clients_own_payload_goes_on_unchanged() -> None:
    whole = b'{"event":"e",  "payload":1e0}'
    assert whole in frames(Broadcast(room=ROOM, whole=whole))[Ear.V1]


@pytest.mark.parametrize("replayed", [False, True])
def test_what_is_known_of_a_stored_message_is_told(replayed: bool) -> None:
    message = Broadcast(room=ROOM, event="e", payload=b"{}", id="u", seq=7, sent_at="2026-01-01T00:00:00Z")
    [*_, body] = json.loads(content(frames(message, replayed=replayed)[Ear.V2]))
    told = {"id": "u", "seq": 7, "sent_at": "2026-01-01T00:00:00Z"}
    assert body["meta"] == ({"replayed": True, **told} if replayed else told)


def test_bytes_reach_only_who_can_hear_them() -> None:
    made = frames(Broadcast(room=ROOM, event="e", payload=b"\x00\xff", binary=True, id="u"))
    assert made[Ear.V1] == made[Ear.V2] == b""
    assert made[Ear.BINARY][0] == 0x82
    assert content(made[Ear.BINARY]) == b'\x04\x0e\x01\x0a\x00realtime:room1e{"id":"u"}\x00\xff'


def test_bytes_whose_event_does_not_fit_are_heard_by_nobody() -> None:
    assert frames(Broadcast(room=ROOM, event="e" * 256, payload=b"", binary=True)) == (b"", b"", b"")


def test_a_push_to_a_room() -> None:
    assert json.loads(content(text_frames(ROOM, "presence_diff", b"{}")[Ear.V2]))[3:] == ["presence_diff", {}]
