"""What clients push to a joined topic, as values; and that nothing they push raises or harms others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.pushes import (
    BroadcastPush,
    Misread,
    ModerationPush,
    PresencePush,
    read_broadcast,
    read_moderation,
    read_presence,
)
from walstream.errors import ProtocolError
from walstream.protocol.binary import Encoding
from walstream.protocol.phoenix import VSN_1, VSN_2, ClientMessage, codec

TOPIC = "realtime:room1"


def text(payload: object, event: str = "broadcast") -> ClientMessage:
    return ClientMessage(TOPIC, event, json.dumps(payload).encode())


def test_a_text_broadcast_goes_on_as_it_is() -> None:
    message = ClientMessage(TOPIC, "broadcast", b'{"event": "e", "payload": [1.50], "x": 1}')
    assert read_broadcast(message) == BroadcastPush("e", b"[1.50]", whole=message.payload)


@pytest.mark.parametrize("key", ['"ids"', '"\\u0069ds"'])
def test_nobody_can_make_others_take_a_broadcast_for_a_table_change(key: str) -> None:
    message = ClientMessage(TOPIC, "broadcast", b'{"event":"e","payload":1,%b:[7]}' % key.encode())
    assert read_broadcast(message) == BroadcastPush("e", b"1")


def test_an_event_that_is_no_string_is_none() -> None:
    push = read_broadcast(text({"event": 7}))
    assert isinstance(push, BroadcastPush)
    assert (push.event, push.payload) == ("", b"{}")


@pytest.mark.parametrize(
    ("metadata", "persist"),
    [
        (b"", False),
        (b'{"persist":true}', True),
        (b'{"persist":{"ttl":60}}', 60),
        (b'{"persist":{"ttl":0}}', True),
        (b'{"persist":{"ttl":true}}', True),
        (b'{"persist":false}', False),
        (b'{"persist":"yes"}', False),
        (b"{}", False),
    ],
)
def test_binary_broadcasts_say_whether_to_store_them(metadata: bytes, persist: bool | int) -> None:
    message = ClientMessage(TOPIC, "broadcast", b"\x00\xff", user_event="e", metadata=metadata, encoding=Encoding.RAW)
    push = read_broadcast(message)
    assert push == BroadcastPush("e", b"\x00\xff", binary=True, persist=persist)
    assert type(push.persist) is type(persist)


def test_presence() -> None:
    assert read_presence(text({"event": "Track", "payload": {"a": 1}}, "presence")) == PresencePush(b'{"a": 1}')
    assert read_presence(text({"event": "untrack"}, "presence")) == PresencePush(None)
    assert isinstance(read_presence(text({"event": "track", "payload": []}, "presence")), Misread)


def test_nobody_can_send_others_what_is_no_text() -> None:
    content = b'{"event":"track","payload":{"a":"\xff"}}'
    assert isinstance(read_presence(ClientMessage(TOPIC, "presence", content, encoding=Encoding.RAW)), Misread)
    deep = b'{"event":"track","payload":{"a":' + b"[" * 200 + b"]" * 200 + b"}}"
    assert isinstance(read_presence(ClientMessage(TOPIC, "presence", deep, encoding=Encoding.RAW)), Misread)
    with pytest.raises(ProtocolError):
        codec(VSN_2).decode(bytes((3, 1, 1, 14, 1, 0, 1)) + b"17realtime:room1e" + b'{"a":"\xff"}')


def test_moderation() -> None:
    assert read_moderation(text({"action": "a", "id": 1})) == ModerationPush("a", {"id": 1})
    assert isinstance(read_moderation(text({"action": 1})), Misread)
    assert isinstance(read_moderation(ClientMessage(TOPIC, "moderation", b"\xff", encoding=Encoding.RAW)), Misread)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["event", "payload", "ids", "action"]), inner)
    ),
    max_leaves=6,
)


@given(st.sampled_from([VSN_1, VSN_2]), JSON)
def test_whatever_comes_as_text_is_read(vsn: str, payload: object) -> None:
    message = codec(vsn).decode(
        json.dumps({"topic": TOPIC, "event": "broadcast", "payload": payload, "ref": "1"})
        if vsn == VSN_1
        else json.dumps(["1", "1", TOPIC, "broadcast", payload])
    )
    push = read_broadcast(message)
    assert isinstance(push, BroadcastPush) == isinstance(payload, dict)
    if isinstance(push, BroadcastPush):
        json.loads(push.payload)
        assert "ids" not in json.loads(push.whole or b"{}")
    presence = read_presence(message)
    if isinstance(presence, PresencePush) and presence.meta is not None:
        assert isinstance(json.loads(presence.meta), dict)
    read_moderation(message)


@given(st.binary(max_size=30))
def test_whatever_comes_as_bytes_is_read(rest: bytes) -> None:
    for kind in (b"\x00", b"\x03"):
        try:
            message = codec(VSN_2).decode(kind + rest)
        except ProtocolError:
            continue
        for read in (read_broadcast, read_presence, read_moderation):
            push = read(message)
            if isinstance(push, PresencePush) and push.meta is not None:
                push.meta.decode("utf-8")
            if isinstance(push, BroadcastPush) and not push.binary:
                (push.whole + push.payload).decode("utf-8")
