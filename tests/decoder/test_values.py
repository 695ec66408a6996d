"""The value table: the text that PostgreSQL prints, and wal2json's JSON of it, become the JSON that clients get."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoder.messages import TYPES, catalog_of, wal2json_value
from walstream.decoder.values import from_text, from_wal2json, types_inside
from walstream.errors import DecodeError
from walstream.model import Catalog, CatalogMiss, TypeInfo

CATALOG = catalog_of()
OIDS = {info.name: info.oid for info in TYPES}

TABLE = [
    ("bool", "t", "true"),
    ("bool", "f", "false"),
    ("int2", "-32768", "-32768"),
    ("int4", "0", "0"),
    ("int8", "9223372036854775807", "9223372036854775807"),
    ("int8", "-9223372036854775808", "-9223372036854775808"),
    ("oid", "4294967295", '"4294967295"'),
    ("float4", "1e-40", "1e-40"),
    ("float8", "1e+300", "1e+300"),
    ("float8", "-0", "-0"),
    ("float8", "NaN", "null"),
    ("float8", "-Infinity", "null"),
    ("numeric", "1.5000", "1.5000"),
    ("numeric", "123456789012345678901234567890.000000001", "123456789012345678901234567890.000000001"),
    ("numeric", "NaN", "null"),
    ("numeric", "Infinity", "null"),
    ("text", "", '""'),
    ("text", 'a "b" \\ é\n\x01', '"a \\"b\\" \\\\ é\\n\\u0001"'),
    ("bpchar", "ab   ", '"ab   "'),
    ("bit", "0101", '"0101"'),
    ("char", "\\303", '"\\\\303"'),
    ("bytea", "\\x", '""'),
    ("bytea", "\\x00ff", '"00ff"'),
    ("blob", "\\xbeef", '"beef"'),
    ("timestamp", "2024-02-29 13:14:15.12", '"2024-02-29T13:14:15.12"'),
    ("timestamp", "12024-01-01 00:00:00", '"12024-01-01T00:00:00"'),
    ("timestamp", "0044-03-15 01:00:00 BC", '"0044-03-15T01:00:00 BC"'),
    ("timestamp", "infinity", '"infinity"'),
    ("timestamp", "-infinity", '"-infinity"'),
    ("timestamptz", "2024-02-29 13:14:15+00", '"2024-02-29T13:14:15+00:00"'),
    ("timestamptz", "2024-02-29 13:14:15.5+05:45", '"2024-02-29T13:14:15.5+05:45"'),
    ("timestamptz", "1800-01-01 00:00:00-00:01:15", '"1800-01-01T00:00:00-00:01:15"'),
    ("timestamptz", "0044-03-15 01:00:00+00 BC", '"0044-03-15T01:00:00+00:00 BC"'),
    ("timestamptz", "12024-01-01 00:00:00+00", '"12024-01-01T00:00:00+00:00"'),
    ("timestamptz", "-infinity", '"-infinity"'),
    ("json", '{"a": 1,  "a": 1.50}', '{"a": 1,  "a": 1.50}'),
    ("json", '"\\ud800"', '"\\"\\\\ud800\\""'),
    ("json", "[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
    ("json", "[" * 101 + "]" * 101, '"' + "[" * 101 + "]" * 101 + '"'),
    ("json", "[" * 100_000 + "]" * 100_000, '"' + "[" * 100_000 + "]" * 100_000 + '"'),
    ("json", '["' + '[\\"' * 200 + '",{"}":[]}]', '["' + '[\\"' * 200 + '",{"}":[]}]'),
    ("json", "[" + "[{}]," * 500 + "1]", "[" + "[{}]," * 500 + "1]"),
    ("jsonb", "null", "null"),
    ("jsonb", '{"a": "q\\"q"}', '{"a": "q\\"q"}'),
    ("int2vector", "1 2", "[1,2]"),
    ("int2vector", "", "[]"),
    ("oidvector", "1 2", '["1","2"]'),
    ("_int4", "{}", "[]"),
    ("_int4", "[0:1]={7,NULL}", "[7,null]"),
    ("_int4", "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
    ("_text", '{a,"b c","q\\"q\\\\",NULL,"NULL","",","}', '["a","b c","q\\"q\\\\",null,"NULL","",","]'),
    ("_box", "{(1,1),(0,0);(2,2),(1,1)}", '["(1,1),(0,0)","(2,2),(1,1)"]'),
    ("ints", "{1}", "[1]"),
    ("mood", "sad", '"sad"'),
    ("positive", "5", "5"),
    ("pair", '(1,"a ""b"" \\\\ c")', '{"n":1,"t":"a \\"b\\" \\\\ c"}'),
    ("pair", "(,)", '{"n":null,"t":null}'),
    ("pair", '(2,"")', '{"n":2,"t":""}'),
    ("pair", "(2)", None),
    ("_pair", '{"(1,a)",NULL,"(2,\\"b,c\\")"}', '[{"n":1,"t":"a"},null,{"n":2,"t":"b,c"}]'),
    ("nothing", "()", "{}"),
    ("hstore", "", "{}"),
    ("hstore", '"a"=>"1", "b \\"c"=>NULL, ""=>"\\\\"', '{"a":"1","b \\"c":null,"":"\\\\"}'),
    ("hstore", "another type of that name", '"another type of that name"'),
]


@pytest.mark.parametrize(
    ("name", "text", "expected"), TABLE, ids=[f"{row[0]}-{number}" for number, row in enumerate(TABLE)]
)
def test_a_text_becomes_its_json(name: str, text: str, expected: str | None) -> None:
    info = CATALOG.types[OIDS[name]]
    by_text = from_text(info, CATALOG)
    by_json = from_wal2json(info, CATALOG) or bytes
    wire = wal2json_value(OIDS[name], text).encode()
    for convert, value in ((by_text, text.encode()), (by_json, wire)):
        if expected is None:  # a composite with another number of fields: the catalog is asked once
            with pytest.raises(CatalogMiss):
                convert(value)
            expected_now = json.dumps(text)
        else:
            expected_now = expected
        assert convert(value).decode() == expected_now


@pytest.mark.parametrize("info", TYPES, ids=lambda info: info.name)
def test_null_is_null_in_wal2json(info: TypeInfo) -> None:
    convert = from_wal2json(info, CATALOG)
    assert convert is None or convert(b"null") == b"null"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bool", "true"), ("int4", ""), ("int4", "01"), ("int4", "1 "), ("float8", "nan"), ("float8", ".5"),
        ("float8", "1."), ("numeric", "1e"), ("numeric", "--1"), ("bytea", "abc"), ("bytea", "\\xa"),
        ("bytea", "\\xGG"), ("oid", "-1"), ("int2vector", "1 x"), ("_int4", "{"), ("_int4", "{1"), ("_int4", "{1}}"),
        ("_int4", "{1,}"), ("_int4", "{1}x"), ("_int4", "{" * 7 + "}" * 7), ("_text", '{"a}'), ("_text", '{"a"b}'),
        ("pair", "1,a"), ("pair", "(1,a"), ("pair", '(1,"a)'), ("pair", "(1,a)x"), ("pair", '(1,"a"b)'),
        ("pair", "(x,a)"),
    ],
)  # fmt: skip
def test_what_no_server_prints_is_refused(name: str, text: str) -> None:
    with pytest.raises(DecodeError):
        from_text(CATALOG.types[OIDS[name]], CATALOG)(text.encode())


@pytest.mark.parametrize("info", TYPES, ids=lambda info: info.name)
@given(text=st.binary(max_size=30) | st.text('{}[]()"\\,;=>NULL01.-+eT: x', max_size=30).map(str.encode))
def test_any_text_is_valid_json_or_refused(info: TypeInfo, text: bytes) -> None:
    try:
        cell = from_text(info, CATALOG)(text)
    except (DecodeError, CatalogMiss):
        return
    json.loads(cell.decode())


@pytest.mark.parametrize("info", TYPES, ids=lambda info: info.name)
@given(text=st.text('"\\{}(),nul01.5 T+:-', max_size=30))
def test_any_json_is_valid_json_or_refused(info: TypeInfo, text: str) -> None:
    convert = from_wal2json(info, CATALOG)
    for value in (json.dumps(text), "null", "5", "true"):
        try:
            cell = convert(value.encode()) if convert is not None else value.encode()
        except (DecodeError, CatalogMiss):
            continue
        json.loads(cell.decode())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_through(text: str) -> None:
    assert json.loads(from_text(CATALOG.types[25], CATALOG)(text.encode())) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_the_same_float(number: float) -> None:
    read = json.loads(from_text(CATALOG.types[701], CATALOG)(repr(number).encode()))
    assert read == number
    assert math.copysign(1, float(read)) == math.copysign(1, number)


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert from_text(None, CATALOG)(b"\xc3(") == '"\N{REPLACEMENT CHARACTER}("'.encode()
    assert from_text(CATALOG.types[114], CATALOG)(b'"\xc3"') == '"\N{REPLACEMENT CHARACTER}"'.encode()


def test_a_dropped_type_is_text() -> None:
    assert from_text(None, CATALOG)(b"1") == b'"1"'
    assert from_wal2json(None, CATALOG) is None


def test_all_that_is_missing_is_named_at_once() -> None:
    catalog = Catalog()
    catalog.load(types={info.oid: info for info in TYPES if info.oid in (20003, 20002, 20001)})
    with pytest.raises(CatalogMiss) as caught:
        types_inside([20003, 20001, 99], catalog)
    assert caught.value.types == {23, 25, 99}
    assert set(types_inside([20003], CATALOG)) == {20003, 20002, 23, 25}
