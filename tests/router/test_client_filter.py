"""The filters of clients: Supabase's grammar and words, with groups as in PostgREST."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import FilterError
from walstream.predicate.expression import (
    And,
    Compare,
    Expression,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Like,
    Not,
    Or,
    Regex,
)
from walstream.router import parse_filter

A, B, C = Compare("a", "eq", "1"), Compare("b", "eq", "2"), Compare("c", "eq", "3")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_blank_filter_is_none(text: str) -> None:
    assert parse_filter(text) is None


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("a=eq.1", A),
        (" a = eq.1 ", A),
        ("a=eq.1,b=eq.2", And((A, B))),
        ("a=not.eq.1", Not(A)),
        ("price=gte.-1.5", Compare("price", "gte", "-1.5")),
        ("name=neq.", Compare("name", "neq", "")),
        ("at=lt.2024-01-01T00:00:00.000Z", Compare("at", "lt", "2024-01-01T00:00:00.000Z")),
        ('name=eq."a,b"', Compare("name", "eq", "a,b")),
        ('name=eq."say \\"hi\\" \\\\ "', Compare("name", "eq", 'say "hi" \\ ')),
        ('name=eq.a"b', Compare("name", "eq", 'a"b')),
        ('name=eq."a', Compare("name", "eq", '"a')),
        ("name=eq.f(x,y)", Compare("name", "eq", "f(x,y)")),
        ("name=eq.a=b.c", Compare("name", "eq", "a=b.c")),
        ("name=eq.null", Compare("name", "eq", "null")),
        ("id=in.(1,2)", InList("id", ("1", "2"))),
        ('id=not.in.( a , "b,c" ," d ")', Not(InList("id", ("a", "b,c", " d ")))),
        ('id=in.(1,null,"null")', InList("id", ("1", None, "null"))),
        ("id=in.()", InList("id", ())),
        ("a=is.null", IsNull("a")),
        ("a=not.is.NULL", Not(IsNull("a"))),
        ("a=is.true,b=is.unknown", And((IsTruth("a", True), IsTruth("b", None)))),
        ("a=like.%x_", Like("a", "%x_")),
        ("a=not.ilike.x%", Not(Like("a", "x%", True))),
        ("a=match.^x,b=imatch.(y|z)", And((Regex("a", "^x"), Regex("b", "(y|z)", True)))),
        ("a=isdistinct.1", IsDistinct("a", "1")),
        ("a=isdistinct.null", IsDistinct("a", None)),
        ('a=not.isdistinct."null"', Not(IsDistinct("a", "null"))),
        ("or(a.eq.1,b.eq.2)", Or((A, B))),
        ("or=(a.eq.1,b=eq.2)", Or((A, B))),
        ("c=eq.3,not.or(a.eq.1,b.not.eq.2)", And((C, Not(Or((A, Not(B))))))),
        ("not.and=(a.eq.1,or(b.eq.2,c.eq.3))", Not(And((A, Or((B, C)))))),
        ("or(a.eq.1)", A),
        ('or(a.in.(1,2),b.eq."x)y")', Or((InList("a", ("1", "2")), Compare("b", "eq", "x)y")))),
        ("or=eq.1,and=is.null", And((Compare("or", "eq", "1"), IsNull("and")))),
        ("x.y=eq.1", Compare("x.y", "eq", "1")),
        ('"a=b"=eq.1', Compare("a=b", "eq", "1")),
        ('or("a.b".eq.1,c.eq.3)', Or((Compare("a.b", "eq", "1"), C))),
    ],
)
def test_filters_are_read_as_supabase_and_postgrest_read_them(text: str, expression: Expression) -> None:
    assert parse_filter(text) == expression


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wrong", '["wrong"]'),
        ("undefined", '["undefined"]'),
        ("subject=foo.hey", '["foo", "hey"]'),
        ("subject=not.fts.a.b", '["fts", "a.b"]'),
        ("subject=hey", '["hey"]'),
        ("=eq.1", '["=eq.1"]'),
        ('say "hi"', '["say \\"hi\\""]'),
        ("a=is.maybe", '["is", "maybe"]'),
        ("a=eq.1,", "filter must not contain empty segments (check for extra commas)"),
        ("a=eq.1,,b=eq.2", "filter must not contain empty segments (check for extra commas)"),
        ("a=in.1,2", "`in` filter value must be wrapped by parentheses"),
        ("a=in.(1,,2)", '["in", "(1,,2)"]'),
        (f"a=in.({','.join(['1'] * 101)})", "too many values for `in` filter. Maximum 100"),
        ("or(a.eq.1) or(b.eq.2)", '["a.eq.1) or(b.eq.2"]'),
        ("or()", "filter must not contain empty segments (check for extra commas)"),
        ("or(a.eq)", '["eq"]'),
        ("or(a)", '["a"]'),
        ("or(a.foo.1)", '["a.foo.1"]'),
        (",".join(["a=eq.1"] * 101), "more than 100 conditions"),
        ("and(" * 17 + "a.eq.1" + ")" * 17, "groups are nested deeper than 16"),
    ],
)
def test_what_is_no_filter_is_refused_in_supabases_words(text: str, reason: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert str(caught.value) == f"Error parsing `filter` params: {reason}"


def test_a_hundred_values_are_allowed() -> None:
    found = parse_filter(f"a=in.({','.join(map(str, range(100)))})")
    assert isinstance(found, InList)
    assert len(found.values) == 100


@given(st.text() | st.text('a=eq.not(),"\\in orand1', max_size=30))
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    with contextlib.suppress(FilterError):
        parse_filter(text)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(texts, st.lists(texts, min_size=1, max_size=5))
def test_a_quoted_value_is_taken_as_it_is(text: str, listed: list[str]) -> None:
    assert parse_filter(f"a=eq.{quoted(text)},b=is.null") == And((Compare("a", "eq", text), IsNull("b")))
    values = ",".join(map(quoted, listed))
    assert parse_filter(f"or(a.in.({values}),b.eq.{quoted(text)})") == Or(
        (InList("a", tuple(listed)), Compare("b", "eq", text))
    )


@given(texts.filter(lambda text: text == text.strip() and not set(text) & set(',()"')))
def test_a_value_without_special_characters_needs_no_quotes(text: str) -> None:
    assert parse_filter(f"a=eq.{text}") == Compare("a", "eq", text)
