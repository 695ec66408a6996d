"""The frames of both protocol versions against examples taken from real clients."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import ProtocolError
from walstream.protocol.binary import Encoding, broadcast_frame, header_text
from walstream.protocol.phoenix import (
    VSN_1,
    VSN_2,
    ClientMessage,
    change_frame_parts,
    codec,
    frame_parts,
    negotiate,
)

V1 = codec(VSN_1)
V2 = codec(VSN_2)


def test_vsn_1_frames_of_the_python_client_are_read() -> None:
    frame = '{"event":"heartbeat","payload":{},"topic":"phoenix","ref":null,"join_ref":null}'
    assert V1.decode(frame) == ClientMessage("phoenix", "heartbeat", b"{}", None, None)


def test_vsn_1_needs_no_join_ref_and_ignores_other_keys() -> None:
    frame = '{"topic":"t","event":"e","payload":null,"ref":"7","extra":[1]}'
    assert V1.decode(frame) == ClientMessage("t", "e", b"null", "7", None)


@pytest.mark.parametrize("missing", ["topic", "event", "payload", "ref"])
def test_vsn_1_frames_without_a_required_key_are_refused(missing: str) -> None:
    frame: dict[str, object] = {"topic": "t", "event": "e", "payload": {}, "ref": None}
    del frame[missing]
    with pytest.raises(ProtocolError, match=missing):
        V1.decode(json.dumps(frame))


@pytest.mark.parametrize(
    "frame", ["[]", "null", "1", '"x"', "", "{}", '{"topic":1,"event":"e","payload":{},"ref":"1"}']
)
def test_vsn_1_frames_of_another_kind_are_refused(frame: str) -> None:
    with pytest.raises(ProtocolError):
        V1.decode(frame)


def test_vsn_1_has_no_binary_frames() -> None:
    with pytest.raises(ProtocolError, match="vsn=2"):
        V1.decode(b"\x03")


def test_vsn_2_frames_may_have_more_than_five_elements() -> None:
    message = V2.decode('["6","7","realtime:room1","broadcast",{"a": 1 }, 8, {}]')
    assert message == ClientMessage("realtime:room1", "broadcast", b'{"a": 1 }', "7", "6")


@pytest.mark.parametrize("frame", ['["6","7","t","e"]', "{}", '["6","7",null,"e",{}]', '[{},"7","t","e",{}]'])
def test_vsn_2_frames_of_another_kind_are_refused(frame: str) -> None:
    with pytest.raises(ProtocolError):
        V2.decode(frame)


def test_vsn_1_pushes_always_have_a_ref_and_never_a_join_ref() -> None:
    push = V1.encode_push("realtime:room1", "presence_diff", b'{"joins":{},"leaves":{}}', join_ref="6")
    assert push == b'{"topic":"realtime:room1","event":"presence_diff","payload":{"joins":{},"leaves":{}},"ref":null}'
    close = V1.encode_push("realtime:room1", "phx_close", b"{}", join_ref="6", ref="6")
    assert close == b'{"topic":"realtime:room1","event":"phx_close","payload":{},"ref":"6"}'


def test_vsn_2_pushes_are_arrays() -> None:
    push = V2.encode_push("realtime:room1", "presence_state", b"{}", join_ref="6")
    assert push == b'["6",null,"realtime:room1","presence_state",{}]'
    close = V2.encode_push("realtime:room1", "phx_close", b"{}", join_ref="6", ref="6")
    assert close == b'["6","6","realtime:room1","phx_close",{}]'


def test_the_captured_binary_broadcast_is_read() -> None:
    payload = '{"a":1,"u":"é"}'.encode()
    frame = bytes.fromhex("0301010e050001") + b"67realtime:room1hello" + payload
    message = V2.decode(frame)
    assert message == ClientMessage(
        "realtime:room1", "broadcast", payload, "7", "6", binary=True, user_event="hello", encoding=Encoding.JSON
    )


def test_metadata_of_a_binary_broadcast_is_kept() -> None:
    metadata = b'{"persist":true}'
    frame = bytes((3, 1, 1, 1, 1, len(metadata), 0)) + b"67te" + metadata + b"\x00\xff"
    message = V2.decode(frame)
    assert (message.metadata, message.payload, message.encoding) == (metadata, b"\x00\xff", Encoding.RAW)


def test_a_binary_push_is_read() -> None:
    message = V2.decode(bytes((0, 0, 1, 2, 3)) + b"7abeve" + b"\x01\x02")
    assert message == ClientMessage("ab", "eve", b"\x01\x02", "7", None, binary=True, encoding=Encoding.RAW)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x01\x00\x00\x00\x00", id="a reply"),
        pytest.param(b"\x04\x01\x01\x00\x00te", id="a server's kind"),
        pytest.param(b"\x03\x01\x01\x01", id="cut header"),
        pytest.param(b"\x03\x01\x01\x01\x01\x01\x01abcd", id="cut strings"),
        pytest.param(b"\x03\x00\x00\x01\x01\x00\x02tepayload", id="unknown encoding"),
        pytest.param(b"\x03\x00\x00\x01\x01\x00\x01tenope", id="payload is no JSON"),
        pytest.param(b'\x03\x00\x00\x01\x01\x00\x01te"\xff"', id="payload is no UTF-8"),
        pytest.param(b"\x03\x00\x00\x01\x01\x02\x00te[]x", id="metadata is no object"),
    ],
)
def test_other_binary_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        V2.decode(frame)


@given(st.binary(max_size=40), st.sampled_from([b"\x00", b"\x03"]))
def test_hostile_binary_frames_raise_nothing_but_protocol_errors(rest: bytes, kind: bytes) -> None:
    try:
        message = V2.decode(kind + rest)
    except ProtocolError:
        return
    assert message.binary


def test_header_strings_of_older_clients_are_latin_1() -> None:
    assert header_text("é".encode("latin-1")) == "é"
    assert header_text("é".encode()) == "é"


def test_a_binary_broadcast_for_clients_is_as_captured() -> None:
    payload = '{"a":1,"u":"é"}'.encode()
    frame = broadcast_frame("realtime:room1", "hello", payload, encoding=Encoding.JSON, metadata=b'{"id":"abc"}')
    assert frame == bytes.fromhex("040e050c01") + b'realtime:room1hello{"id":"abc"}' + payload


@pytest.mark.parametrize(
    ("topic", "event", "metadata"), [("é" * 128, "e", b""), ("t", "e" * 256, b""), ("t", "e", b"m" * 256)]
)
def test_what_does_not_fit_a_length_byte_has_no_binary_frame(topic: str, event: str, metadata: bytes) -> None:
    assert broadcast_frame(topic, event, b"", encoding=Encoding.RAW, metadata=metadata) is None
    assert broadcast_frame("t" * 255, "e", b"", encoding=Encoding.RAW) is not None


@pytest.mark.parametrize(
    ("asked", "spoken"),
    [(None, VSN_1), ("1.0.0", VSN_1), ("1.1", VSN_1), ("2.0.0", VSN_2), ("3.0.0", None), ("", None), ("20.0", None)],
)
def test_the_version_is_negotiated(asked: str | None, spoken: str | None) -> None:
    assert negotiate(asked) == spoken


@pytest.mark.parametrize("vsn", [VSN_1, VSN_2])
@given(topic=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_spliced_frame_equals_an_encoded_one(vsn: str, topic: str) -> None:
    prefix, suffix = change_frame_parts(vsn, topic)
    payload = b'{"ids":[1,2],"data":{"schema":"public"}}'
    assert prefix + payload + suffix == codec(vsn).encode_push(topic, "postgres_changes", payload)


def test_frame_parts_carry_the_event() -> None:
    assert frame_parts(VSN_2, "t", "INSERT") == (b'[null,null,"t","INSERT",', b"]")
