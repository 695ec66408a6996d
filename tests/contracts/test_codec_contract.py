"""What every version of the protocol keeps: frames go in and come out whole, and hostile ones end in ProtocolError."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import ProtocolError
from walstream.protocol.phoenix import VSN_1, VSN_2, ClientMessage, Codec, Ref, Version1, Version2, codec

_V1: type[Codec] = Version1
_V2: type[Codec] = Version2

VERSIONS = pytest.mark.parametrize("vsn", [VSN_1, VSN_2])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
refs: st.SearchStrategy[Ref] = st.none() | texts | st.integers()
payloads = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def client_frame(vsn: str, message: tuple[Ref, Ref, str, str, object]) -> str:
    join_ref, ref, topic, event, payload = message
    if vsn == VSN_2:
        return json.dumps([join_ref, ref, topic, event, payload])
    return json.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref})


@VERSIONS
@given(message=st.tuples(refs, refs, texts, texts, payloads))
def test_a_frame_is_read_as_it_was_written(vsn: str, message: tuple[Ref, Ref, str, str, object]) -> None:
    read = codec(vsn).decode(client_frame(vsn, message))
    assert (read.join_ref, read.ref, read.topic, read.event, json.loads(read.payload)) == message
    assert not read.binary


@VERSIONS
@given(data=st.text() | st.binary())
def test_hostile_frames_raise_nothing_but_protocol_errors(vsn: str, data: str | bytes) -> None:
    try:
        message = codec(vsn).decode(data)
        message.value()
    except ProtocolError:
        return
    assert isinstance(message, ClientMessage)


@VERSIONS
@given(
    message=st.tuples(refs, refs, texts, texts, payloads),
    at=st.integers(min_value=0),
    junk=st.text(max_size=3),
    cut=st.integers(min_value=0, max_value=5),
)
def test_broken_frames_raise_nothing_but_protocol_errors(
    vsn: str, message: tuple[Ref, Ref, str, str, object], at: int, junk: str, cut: int
) -> None:
    whole = client_frame(vsn, message)
    at %= len(whole)
    with contextlib.suppress(ProtocolError):
        codec(vsn).decode(whole[:at] + junk + whole[at + cut :]).value()


@VERSIONS
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("[" * 100_000 + "]" * 100_000, id="deep arrays"),
        pytest.param('{"a":' * 5_000 + "1" + "}" * 5_000, id="deep objects"),
        pytest.param("[" * 300 + "]" * 300, id="deeper than other ends can read"),
        pytest.param("01", id="not a number"),
        pytest.param("NaN", id="NaN"),
        pytest.param("tru", id="cut literal"),
        pytest.param("{'a':1}", id="single quotes"),
        pytest.param("{} {}", id="two values"),
    ],
)
def test_a_payload_that_others_could_not_read_is_refused(vsn: str, payload: str) -> None:
    marked = client_frame(vsn, (None, "1", "t", "e", "payload")).replace('"payload"', f"{payload}", -1)
    if vsn == VSN_1:
        marked = f'{{"topic":"t","event":"e","payload":{payload},"ref":"1"}}'
    with pytest.raises(ProtocolError):
        codec(vsn).decode(marked)


@VERSIONS
@pytest.mark.parametrize("number", ["9" * 5000, "1e999"])
def test_a_number_that_python_cannot_hold_is_a_protocol_error(vsn: str, number: str) -> None:
    message = codec(vsn).decode(client_frame(vsn, (None, "1", "t", "e", 4711)).replace("4711", number))
    assert message.payload == number.encode()
    with pytest.raises(ProtocolError, match="out of range"):
        message.value()


@VERSIONS
def test_a_ref_may_be_a_large_integer_and_no_larger(vsn: str) -> None:
    message = codec(vsn).decode(client_frame(vsn, (None, 10**40, "t", "e", 1)))
    assert message.ref == 10**40
    assert str(10**40).encode() in codec(vsn).encode_reply(message, "ok")
    with pytest.raises(ProtocolError):
        codec(vsn).decode(client_frame(vsn, (None, 4711, "t", "e", 1)).replace("4711", "9" * 5000))


@VERSIONS
def test_brackets_in_strings_are_no_nesting(vsn: str) -> None:
    payload: dict[str, object] = {"a": '["' * 500 + "\\", "b": ["[" * 500, {"c": "{" * 500}]}
    message = codec(vsn).decode(client_frame(vsn, (None, "1", "t", "e", payload)))
    assert message.value() == payload


@VERSIONS
def test_many_shallow_arrays_are_read(vsn: str) -> None:
    payload: list[object] = [[{}, []] for _ in range(5000)]
    assert codec(vsn).decode(client_frame(vsn, (None, "1", "t", "e", payload))).value() == payload


@VERSIONS
def test_the_last_of_duplicate_keys_wins(vsn: str) -> None:
    marked = client_frame(vsn, (None, "1", "t", "e", 4711)).replace("4711", '{"a":1,"a":2}')
    message = codec(vsn).decode(marked)
    assert message.payload == b'{"a":1,"a":2}'
    assert message.value() == {"a": 2}


@VERSIONS
@given(message=st.tuples(refs, refs, texts, texts, payloads), response=payloads)
def test_a_reply_echoes_the_refs_of_its_request(
    vsn: str, message: tuple[Ref, Ref, str, str, object], response: object
) -> None:
    join_ref, ref, topic, _, _ = message
    codec_ = codec(vsn)
    request = codec_.decode(client_frame(vsn, message))
    reply = json.loads(codec_.encode_reply(request, "ok", json.dumps(response).encode()))
    payload: dict[str, object] = {"status": "ok", "response": response}
    if vsn == VSN_1:
        assert reply == {"topic": topic, "event": "phx_reply", "payload": payload, "ref": ref}
    else:
        assert reply == [join_ref, ref, topic, "phx_reply", payload]
