"""Whatever the bytes, a decoder answers with a record that is whole, with DecodeError, or by asking the catalog."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoder.messages import TYPES, Reader, Table, speaker
from walstream.decoder import DECODERS, MESSAGE_PREFIX, Decoder
from walstream.errors import DecodeError
from walstream.model import Begin, CatalogMiss, Change

PLUGINS = pytest.mark.parametrize("plugin", DECODERS)

T = Table((("id", 20), ("body", 25), ("n", 23)), key=("id",))
ROW = {"id": "1", "body": "text", "n": None}
ODD = Table(tuple((f'c"{info.oid}', info.oid) for info in TYPES), key=('c"16',), name="odd", oid=3)
SAMPLES = {
    16: "t", 17: "\\x00ff", 20: "-5", 22: "1 2", 26: "7", 30: "1", 114: "{}", 1007: "{1,{2}}", 1009: '{"a",NULL}',
    1020: "{(1,1),(0,0)}", 3802: "[1]", 20002: "(1,a)", 20003: '{"(1,a)"}', 20004: "\\x", 20005: "()",
    20006: '"a"=>NULL', 20007: "[0:1]={1,2}", 1114: "2024-02-29 13:14:15", 1184: "2024-02-29 13:14:15+00",
}  # fmt: skip
JUNK = [b'"', b"\\", b"}", b"]", b",", b"null", b"\xff\xff\xff\xff", b"-1", b"1e5", b"\\u0000", b"\\ud800"]


def valid(plugin: str) -> list[bytes]:
    says = speaker(plugin)
    row = {name: SAMPLES.get(oid, "1") for name, oid in ODD.columns}
    return [
        says.begin(),
        *says.row("I", T, ROW),
        *says.row("U", T, {"id": "1", "n": "2"}, {"id": "1"}),
        *says.row("U", T, ROW, {"id": "2"}),
        *says.row("D", T, None, {"id": "1"}),
        *says.row("I", ODD, row),
        *says.row("U", ODD, row, {'c"16': "f"}),
        *says.truncate(T, ODD),
        says.message(MESSAGE_PREFIX, "x"),
        says.commit(),
    ]


def trained(plugin: str) -> tuple[Decoder, list[bytes]]:
    """A decoder that has met every message more than once, and these messages."""
    messages = valid(plugin)
    reader = Reader(plugin, T, ODD)
    for _ in range(3):
        reader.read(messages)
    return reader.decoder, messages


TRAINED = {plugin: trained(plugin) for plugin in DECODERS}


def survives(decoder: Decoder, payload: bytes) -> None:
    try:
        record = decoder.decode(payload, 5)
    except (DecodeError, CatalogMiss):
        return
    if isinstance(record, Begin):
        assert 0 <= record.xid < 2**32
    if isinstance(record, Change):
        for row in (record.new, record.old):
            assert row is None or len(row) == len(record.relation.columns)
            for cell in row or ():
                if cell is not None:
                    json.loads(cell.decode())


@PLUGINS
def test_every_cut_of_a_message_is_survived(plugin: str) -> None:
    decoder, messages = TRAINED[plugin]
    for payload in messages:
        for end in range(len(payload)):
            survives(decoder, payload[:end])
            survives(decoder, payload[end:])


@PLUGINS
@given(data=st.data())
def test_every_broken_message_is_survived(plugin: str, data: st.DataObject) -> None:
    decoder, messages = TRAINED[plugin]
    for _ in range(10):
        payload = data.draw(st.sampled_from(messages))
        at = data.draw(st.integers(0, len(payload)))
        junk = data.draw(
            st.binary(max_size=4)
            | st.sampled_from([b'"', b"\\", b"}", b"]", b",", b"null", b"\xff\xff\xff\xff", b"-1", b"1e5"])
        )
        cut = data.draw(st.integers(0, 4))
        survives(decoder, payload[:at] + junk + payload[at + cut :])


@PLUGINS
@given(payload=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"action":' * 50_000, b""]))
def test_hostile_bytes_are_survived(plugin: str, payload: bytes) -> None:
    decoder = Reader(plugin, T).decoder
    survives(decoder, payload)
    for kind in b"BCRYOTMIUD":
        survives(decoder, bytes([kind]) + payload)
