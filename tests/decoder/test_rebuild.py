"""The value table backwards: what is read is the value that was written, or it is said that nobody can tell."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoder.messages import TYPES, catalog_of
from walstream.decoder.nested import read_hstore
from walstream.decoder.rebuild import AS_IT_STANDS, JSON_NULL, NOT_FINITE, Lossy, Rebuild, rebuild
from walstream.decoder.values import from_text
from walstream.model import Catalog, CatalogMiss, TypeInfo

ARRAYS = [
    TypeInfo(21000 + number, f"_{info.name}", category="A", element=info.oid)
    for number, info in enumerate(TYPES)
    if info.name in ("bytea", "numeric", "float8", "jsonb", "int2vector", "ints")
]
CATALOG = catalog_of()
CATALOG.load(types={info.oid: info for info in ARRAYS})
BY_NAME = {info.name: info for info in (*TYPES, *ARRAYS)}


def how(name: str) -> Rebuild:
    return rebuild(BY_NAME[name], CATALOG)


def back(name: str, cell: str) -> str:
    convert = how(name).convert
    return cell if convert is None else convert(cell.encode()).decode()


@pytest.mark.parametrize(
    "name", ["bool", "int8", "text", "bpchar", "timestamptz", "oid", "_int4", "_text", "_box", "mood"]
)
def test_most_types_are_read_from_their_cells_as_they_stand(name: str) -> None:
    assert how(name) == AS_IT_STANDS


def test_a_type_that_has_gone_is_read_as_it_stands() -> None:
    assert rebuild(None, CATALOG) == AS_IT_STANDS


@pytest.mark.parametrize(
    ("name", "cell", "expected"),
    [
        ("bytea", '""', '"\\\\x"'),
        ("bytea", '"00ff"', '"\\\\x00ff"'),
        ("blob", '"beef"', '"\\\\xbeef"'),
        ("_bytea", '["00ff",null,["01"]]', '["\\\\x00ff",null,["\\\\x01"]]'),
        ("int2vector", "[1,-2]", '"1 -2"'),
        ("oidvector", '["1","4294967295"]', '"1 4294967295"'),
        ("oidvector", "[]", '""'),
        ("hstore", "{}", '""'),
        ("hstore", '{"a":"1","b \\"":null}', '"\\"a\\"=>\\"1\\", \\"b \\\\\\"\\"=>NULL"'),
        ("json", '{"a": [1, null]}', '"{\\"a\\": [1, null]}"'),
        ("jsonb", '"x"', '"\\"x\\""'),
        ("json", '"[1]"', '"\\"[1]\\""'),
        ("_numeric", "[1.50,-2]", "[1.50,-2]"),
        ("_jsonb", "[]", "[]"),
        ("_ints", "[null]", "[null]"),
    ],
)
def test_cells_become_what_postgresql_reads(name: str, cell: str, expected: str) -> None:
    assert back(name, cell) == expected


@pytest.mark.parametrize(
    ("name", "cell", "reason"),
    [
        ("_numeric", "[1,null]", "not_a_number"),
        ("_float8", "[[1],[null]]", "not_a_number"),
        ("_jsonb", "[1]", "lossy_value"),
        ("_jsonb", "[[1]]", "lossy_value"),
        ("_jsonb", "[null]", "lossy_value"),
        ("_int2vector", "[[1]]", "lossy_value"),
        ("_ints", "[[1],[2,3]]", "lossy_value"),
        ("json", '"\\"\\\\ud800\\""', "lossy_value"),
        ("json", '"' + "[" * 101 + "]" * 101 + '"', "lossy_value"),
        ("pair", '"(1,2)"', "lossy_value"),
    ],
)
def test_what_nobody_can_tell_is_said(name: str, cell: str, reason: str) -> None:
    with pytest.raises(Lossy) as raised:
        back(name, cell)
    assert raised.value.reason == reason


def test_nulls_that_may_be_something_else() -> None:
    for name in ("float4", "float8", "numeric"):
        assert how(name).instead == NOT_FINITE
        assert how(name).loss == "not_a_number"
    for name in ("json", "jsonb"):
        assert how(name).instead == JSON_NULL
        assert how(name).loss == "lossy_value"
        assert how(name).as_text
    for name in ("int4", "text", "_numeric", "pair"):
        assert how(name).instead == ()


def test_types_inside_are_asked_for() -> None:
    with pytest.raises(CatalogMiss):
        rebuild(TypeInfo(oid=1, name="_x", category="A", element=2), Catalog())


@given(st.dictionaries(st.text(), st.none() | st.text()))
def test_every_hstore_comes_back(pairs: dict[str, str | None]) -> None:
    cell = json.dumps(pairs)
    read = read_hstore(json.loads(back("hstore", cell)).encode())
    assert read is not None
    assert {key.decode(): None if value is None else value.decode() for key, value in read} == pairs


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_json_comes_back_or_is_said_to_be_lost(value: object) -> None:
    text = json.dumps(value)
    cell = from_text(BY_NAME["json"], CATALOG)(text.encode()).decode()
    if cell == "null":
        return
    try:
        assert json.loads(back("json", cell)) == text
    except Lossy:
        assert isinstance(value, str)
