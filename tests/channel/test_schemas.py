"""Schemas of messages: what they check, and that none of them can hold anybody up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.schemas import Schemas

MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 5}}}


def checked(schema: object, payload: object) -> str:
    schemas = Schemas({"e": schema})
    assert schemas.faults == {}
    return schemas.check("e", json.dumps(payload).encode())


def test_a_message_is_checked_by_the_schema_of_its_event_or_by_that_of_all_others() -> None:
    schemas = Schemas({"message": MESSAGE, "*": {"type": "object"}})
    assert schemas.check("message", b'{"text":"hi"}') == ""
    assert schemas.check("message", b"{}") == "payload: 'text' is a required property"
    assert schemas.check("message", b'{"text":7}') == "payload.text: 7 is not of type 'string'"
    assert schemas.check("other", b"{}") == ""
    assert schemas.check("other", b"[]") != ""
    assert schemas.check("message", b'{"text":') == "the payload is not JSON"


def test_bytes_fit_no_schema() -> None:
    schemas = Schemas({"message": MESSAGE})
    assert schemas.check("message", b"\0", binary=True)
    assert schemas.check("other", b"\0", binary=True) == ""


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"pattern": "("},
        {"pattern": "(a)\\1"},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}},
        {"unevaluatedProperties": False, "patternProperties": {"a": True}},
        7,
        None,
        {"enum": ["x" * 200_000]},
    ],
)
def test_what_is_no_schema_is_a_fault_and_refuses_nobody(schema: object) -> None:
    schemas = Schemas({"e": schema})
    assert schemas.faults.keys() == {"e"}
    assert schemas.check("e", b'"anything"') == ""


@pytest.mark.parametrize("value", [7, [], "x"])
def test_schemas_that_are_no_object_are_a_fault(value: object) -> None:
    assert Schemas(value).faults.keys() == {"*"}


def test_no_schemas_are_no_fault() -> None:
    assert Schemas(None).faults == {}
    assert not Schemas(None)


@pytest.mark.parametrize("ref", ["http://127.0.0.1:9/schema", "#/nowhere", "file:///etc/passwd"])
def test_nothing_is_fetched(ref: str) -> None:
    schemas = Schemas({"e": {"$ref": ref}})
    assert schemas.check("e", b"{}") == ""
    assert schemas.faults["e"].startswith("a $ref leads nowhere")


def test_a_reference_inside_the_schema_is_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    assert checked(schema, [1, 2]) == ""
    assert checked(schema, [1, "2"]) == "payload[1]: '2' is not of type 'integer'"


def test_older_drafts_are_read_as_themselves() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}
    assert checked(schema, [1, "x"]) == ""
    assert checked(schema, ["x"]) != ""


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 60 + "!"),
        ({"patternProperties": {"^(a+)+$": False}}, {"a" * 60 + "!": 1}),
        ({"additionalProperties": False, "patternProperties": {"^(a|a)*$": {}}}, {"a" * 60 + "!": 1}),
        ({"$ref": "#"}, 1),
        ({"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}},
          "$ref": "#/$defs/d0"}, 1),
        ({"items": {"type": "integer"}}, [1] * 400_000),
        ({"items": {}}, [1] * 400_000),
        ({"uniqueItems": True}, [1, "a", {}] * 20_000),
    ],
)  # fmt: skip
def test_no_schema_and_no_payload_takes_long(schema: object, payload: object) -> None:
    schemas = Schemas({"e": schema})
    assert schemas.faults == {}
    # Minutes to years without the bounds, which end the test run.
    assert schemas.check("e", json.dumps(payload).encode()) != "the payload is not JSON"


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 2], True),
        ([1, 1.0], False),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ([1, "1", True], True),
        ([], True),
    ],
)
def test_items_are_unique_by_value(items: list[object], unique: bool) -> None:
    assert (checked({"uniqueItems": True}, items) == "") is unique


def test_additional_properties_may_have_a_schema() -> None:
    schema = {"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": {"type": "string"}}
    assert checked(schema, {"a": 1, "x1": 1, "other": "s"}) == ""
    assert checked(schema, {"other": 1}) == "payload.other: 1 is not of type 'string'"


def test_texts_for_the_sender_are_short() -> None:
    assert len(checked({"type": "string"}, ["x" * 100_000])) <= 300


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYWORDS = st.sampled_from(["type", "properties", "items", "pattern", "$ref", "enum", "anyOf", "required", "not"])


@given(st.dictionaries(KEYWORDS, JSON), st.binary(max_size=30))
def test_any_metadata_and_any_payload_have_an_answer(schema: object, payload: bytes) -> None:
    assert isinstance(Schemas({"e": schema}).check("e", payload), str)
