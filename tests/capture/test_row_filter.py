"""The filters of captured tables: what is read, what is printed, and what an error names."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.capture import parse_row_filter, print_filter
from walstream.errors import FilterError
from walstream.predicate.expression import (
    COMPARISONS,
    And,
    Compare,
    Expression,
    Holds,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Like,
    Not,
    Or,
    Regex,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
names = st.sampled_from(["a", "b_1", "Odd Name", "select", "and", 'q"q', "ñ", "Ä", "x.y", "1st"]) | texts.filter(bool)
values = st.none() | texts | st.integers().map(str)
casts = st.sampled_from(["", "", "text", "int4", "timestamp with time zone", "double precision", "Mood", "char", "in"])
_leaves: st.SearchStrategy[Expression] = st.one_of(
    st.builds(Compare, names, st.sampled_from(COMPARISONS), values, casts),
    st.builds(InList, names, st.lists(values, min_size=1, max_size=4).map(tuple), casts),
    st.builds(IsNull, names),
    st.builds(IsTruth, names, st.sampled_from([True, False, None])),
    st.builds(IsDistinct, names, values, casts),
    st.builds(Like, names, texts, st.booleans()),
    st.builds(Regex, names, texts, st.booleans()),
    st.builds(Holds, names),
)


def _groups(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(And, parts) | st.builds(Or, parts) | st.builds(Not, inner)


expressions = st.recursive(_leaves, _groups, max_leaves=8)


@given(expressions)
def test_a_printed_filter_is_read_back_as_the_same_tree(expression: Expression) -> None:
    assert parse_row_filter(print_filter(expression)) == expression


@given(st.text())
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    with contextlib.suppress(FilterError):
        parse_row_filter(text)


_words = st.sampled_from([
    "a", '"B c"', "and", "OR", "not", "(", ")", "=", "<>", "in", "is", "null", "true", "like", "'x'", "5", "-",
    "between", "distinct", "from", "::", "int4", ",", "~", "!~*", "'", '"', "unknown", "ilike", ".5e1", ".",
])  # fmt: skip


@given(st.lists(_words, max_size=12).map(" ".join))
def test_any_row_of_words_is_a_filter_that_prints_or_an_error_with_a_position(text: str) -> None:
    try:
        expression = parse_row_filter(text)
    except FilterError as error:
        assert "position" in str(error) or "before" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert parse_row_filter(print_filter(expression)) == expression


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("post_id = '123'", Compare("post_id", "eq", "123")),
        ("a <> 1", Compare("a", "neq", "1")),
        ("a != -1.5e3", Compare("a", "neq", "-1.5e3")),
        ("a>=.5 ", Compare("a", "gte", ".5")),
        ("A = 'it''s'", Compare("a", "eq", "it's")),
        ('"A" = true', Compare("A", "eq", "true")),
        ("a = NULL", Compare("a", "eq", None)),
        ("a IN (1, 'x', null)", InList("a", ("1", "x", None))),
        ("a not in (1)", Not(InList("a", ("1",)))),
        ("a is not null", Not(IsNull("a"))),
        ("a is unknown", IsTruth("a", None)),
        ("a is not true", Not(IsTruth("a", True))),
        ("a is distinct from 'x'", IsDistinct("a", "x")),
        ("a is not distinct from null", Not(IsDistinct("a", None))),
        ("a like 'x%'", Like("a", "x%")),
        ("a not ilike 'x%'", Not(Like("a", "x%", True))),
        ("a ~ '^x'", Regex("a", "^x")),
        ("a !~* '^x'", Not(Regex("a", "^x", True))),
        ("a between 1 and 2", And((Compare("a", "gte", "1"), Compare("a", "lte", "2")))),
        ("a not between 1 and 2", Not(And((Compare("a", "gte", "1"), Compare("a", "lte", "2"))))),
        ("active", Holds("active")),
        ("not active and (banned or gone)", And((Not(Holds("active")), Or((Holds("banned"), Holds("gone")))))),
        ("a or b and c", Or((Holds("a"), And((Holds("b"), Holds("c")))))),
        ("not a = 1", Not(Compare("a", "eq", "1"))),
        ("at > '2024-01-01'::timestamp with time zone", Compare("at", "gt", "2024-01-01", "timestamp with time zone")),
        ("a = '1'::pg_catalog.int4", Compare("a", "eq", "1", "int4")),
        ("a = 'x'::\"Mood\"", Compare("a", "eq", "x", "Mood")),
        ("a in ('1'::int4, 2)", InList("a", ("1", "2"), "int4")),
        ("naïve = 1", Compare("naïve", "eq", "1")),
    ],
)
def test_filters_are_read_as_sql_reads_them(text: str, expression: Expression) -> None:
    assert parse_row_filter(text) == expression


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a column but found the end at position 1"),
        ("a = ", "expected a value but found the end at position 5"),
        ("a == 1", "expected a value but found '=' at position 4"),
        ("a = b", "expected a value but found 'b' at position 5"),
        ("1 = a", "expected a column but found '1' at position 1"),
        ("a = 1 b", "expected AND, OR or the end but found 'b' at position 7"),
        ("a = 'x", "a quoted text without its end at position 5"),
        ("a = 1; drop table x", "unexpected ';' at position 6"),
        ("a = 1 -- x", "expected AND, OR or the end but found '-' at position 7"),
        ("(a = 1", "expected ')' but found the end at position 7"),
        ("a is", "expected NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM but found the end at position 5"),
        ("a is distinct 1", "expected FROM but found '1' at position 15"),
        ("a in ()", "expected a value but found ')' at position 7"),
        ("a not 1", "expected IN, LIKE, ILIKE or BETWEEN but found '1' at position 7"),
        ("a like b", "expected a pattern in single quotes but found 'b' at position 8"),
        ("a b", "expected a comparison but found 'b' at position 3"),
        ("a, b", "expected a comparison but found ',' at position 2"),
        ("a between 1 or 2", "expected AND but found 'or' at position 13"),
        ("a = - 'x'", "expected a number but found 'x' at position 7"),
        ("a = '1'::varchar(3)", "expected a type without a length but found '(' at position 17"),
        ("a = '1'::timestamp with zone", "expected TIME but found 'zone' at position 25"),
        ("a = '1'::3", "expected a type but found '3' at position 10"),
        ("a in ('1'::int4, '2'::int8)", "one list with casts to int4 and int8"),
        ("a like 'x'::int4", "a pattern cast to int4"),
        ("t.a = 1", "expected a comparison but found '.' at position 2"),
        ("lower(a) = 'x'", "expected a comparison but found '(' at position 6"),
        ("a = (select 1)", "expected a value but found '(' at position 5"),
        ("a = 1\0", "NUL"),
        ("a = 'x' " + " " * 70_000, "more than 65536 characters"),
        ("not " * 65 + "a", "nested deeper than 64 levels"),
        ("(" * 65 + "a" + ")" * 65, "nested deeper than 64 levels"),
        (f"a in ({','.join(['1'] * 1001)})", "more than 1000 literals"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_position(text: str, said: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_row_filter(text)
    assert said in str(caught.value)


def test_the_deepest_filter_allowed_is_read() -> None:
    assert parse_row_filter("(" * 63 + "a = 1" + ")" * 63) == Compare("a", "eq", "1")
    deepest = parse_row_filter("not " * 63 + "a")
    for _ in range(63):
        assert isinstance(deepest, Not)
        deepest = deepest.part
    assert deepest == Holds("a")


def test_an_empty_list_has_no_sql() -> None:
    with pytest.raises(FilterError, match="an empty list"):
        print_filter(InList("a", ()))
