"""Trees are read as PostgreSQL writes them, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.policy.nodes import DEPTH_MAX, Datum, Node, Quoted, Unreadable, Value, attributes_of, read

VAR = "{VAR :varno 1 :varattno %d :vartype 23 :vartypmod -1 :varcollid 0 :varlevelsup %d :location -1}"

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
DATUMS = st.builds(Datum, st.integers(0, 10**6), st.binary(max_size=12))
LEAVES: st.SearchStrategy[Value] = st.none() | TEXTS.filter(bool) | st.builds(Quoted, TEXTS)


def nodes(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.builds(Node, NAMES, st.dictionaries(NAMES, inner | DATUMS, max_size=5))


TREES = st.recursive(LEAVES, lambda inner: nodes(inner) | st.lists(inner, max_size=4).map(tuple), max_leaves=20)


def escaped(text: str) -> str:
    """As outToken does: what would end a token or begin another kind of it gets a backslash."""
    first = "\\" if text[:1] in ("<", '"') or text[:1].isdigit() or text[:1] in ("+", "-") else ""
    return first + "".join("\\" + c if c in " \n\t(){}\\" else c for c in text)


def written(value: Any) -> str:
    match value:
        case None:
            return "<>"
        case Node(kind, fields):
            return "{" + kind + "".join(f" :{name} {written(field)}" for name, field in fields.items()) + "}"
        case Quoted(text):
            return '"' + escaped(text) + '"'
        case Datum(length, data):
            return f"{length} [ {''.join(f'{byte - 256 if byte > 127 else byte} ' for byte in data)}]"
        case str():
            return escaped(value)
        case tuple():
            return "(" + " ".join([written(item) for item in value]) + ")"
    raise AssertionError(value)


@given(TREES)
def test_what_is_written_is_read(tree: Value) -> None:
    assert read(written(tree)) == tree


@given(st.text('{}()[]:<>"\\ \nab1-'))
def test_anything_else_is_refused_and_nothing_breaks(text: str) -> None:
    try:
        read(text)
    except Unreadable:
        return
    assert text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "{", "{A", "{A :b", "{A :b}", "{A b 1}", "{A :b 1 :b 2}", "{:a 1}", "(a", ")", "a b", "{A :b 1 [ 300 ]}",
     "{A :b x [ 1 ]}", "{A :b 1 [ 1}", '"', '"a', "\\"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        read(text)


def test_nesting_has_an_end() -> None:
    assert read("(" * DEPTH_MAX + ")" * DEPTH_MAX)
    with pytest.raises(Unreadable, match="too deep"):
        read("(" * 100_000)


def test_fields_are_read_by_what_they_are() -> None:
    node = read('{A :n -7 :yes true :child {B :x "q"} :many ({B} {C}) :none <> :bits (b 1 2) :name :odd}')
    assert isinstance(node, Node)
    assert (node.number("n"), node.flag("yes"), node.node("child").kind) == (-7, True, "B")
    assert [child.kind for child in node.nodes("many")] == ["B", "C"]
    assert (node.nodes("none"), node.get("bits"), node.get("name")) == ((), ("b", "1", "2"), ":odd")
    for wrong in (lambda: node.number("yes"), lambda: node.flag("n"), lambda: node.node("many"), lambda: node.get("z"),
                  lambda: node.nodes("bits"), lambda: node.nodes("child"), lambda: node.number("child")):  # fmt: skip
        with pytest.raises(Unreadable):
            wrong()


def test_columns_of_the_table_are_those_whose_level_leads_out_of_all_queries() -> None:
    inner = "{QUERY :targetList (" + VAR % (3, 1) + " " + VAR % (9, 0) + " {SUBLINK :subselect {QUERY :x ("
    inner += VAR % (4, 2) + VAR % (8, 1) + ")}})}"
    assert attributes_of(
        read("(" + VAR % (2, 0) + " {SUBLINK :testexpr " + VAR % (5, 0) + " :subselect " + inner + "})")
    ) == {2, 3, 4, 5}
