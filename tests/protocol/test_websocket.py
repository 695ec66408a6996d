"""Frame headers against an independent implementation of RFC 6455."""

from __future__ import annotations

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage

from walstream.protocol.websocket import BINARY, TEXT, frame, frame_header


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_client_reads_the_frame_that_was_written(length: int, opcode: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(frame(b"x" * length, opcode))
    events = list(client.events())
    data = "".join(e.data for e in events if isinstance(e, TextMessage)).encode()
    data += b"".join(bytes(e.data) for e in events if isinstance(e, BytesMessage))
    assert data == b"x" * length
    assert all(isinstance(event, TextMessage if opcode == TEXT else BytesMessage) for event in events)


def test_headers_are_as_short_as_they_can_be() -> None:
    assert frame_header(125) == b"\x81\x7d"
    assert frame_header(126) == b"\x81\x7e\x00\x7e"
    assert frame_header(65536, BINARY) == b"\x82\x7f" + (65536).to_bytes(8, "big")
