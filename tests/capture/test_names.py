"""Names of tables as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.capture import TablePattern, parse_table_pattern, quote_identifier, quote_table
from walstream.errors import FilterError

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(names, names)
def test_a_quoted_table_is_read_back_as_the_same_names(schema: str, table: str) -> None:
    pattern = parse_table_pattern(quote_table(schema, table))
    assert (pattern.schema, pattern.table) == (schema, table)
    assert pattern.spellings == ((schema, table),)
    assert str(pattern) == quote_table(schema, table)


@given(st.text(max_size=20))
def test_any_text_is_a_pattern_or_a_filter_error(text: str) -> None:
    with contextlib.suppress(FilterError):
        pattern = parse_table_pattern(text)
        assert parse_table_pattern(str(pattern)).spellings[0] == pattern.spellings[0]


@pytest.mark.parametrize(
    ("text", "schema", "table"),
    [
        ("public.users", "public", "users"),
        (" public . users ", "public", "users"),
        ('"a.b"."C d"', "a.b", "C d"),
        ('public."say ""hi"""', "public", 'say "hi"'),
        ('"*"."*"', "*", "*"),
        ("users", None, "users"),
        ('"Users"', None, "Users"),
        ("public.*", "public", None),
        ('"My Schema".*', "My Schema", None),
        ("*.*", None, None),
        ("*", None, None),
    ],
)
def test_patterns_are_read_as_written(text: str, schema: str | None, table: str | None) -> None:
    pattern = parse_table_pattern(text)
    assert (pattern.schema, pattern.table) == (schema, table)
    assert pattern.is_unqualified == (schema is None and table is not None)


def test_capitals_without_quotes_are_folded_first_and_taken_as_written_second() -> None:
    pattern = parse_table_pattern("App.Users")
    assert (pattern.schema, pattern.table) == ("app", "users")
    assert pattern.spellings == (("app", "users"), ("app", "Users"), ("App", "users"), ("App", "Users"))
    assert parse_table_pattern("App.*").spellings == (("app", None), ("App", None))


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "a.", ".a", "a.b.c", "*.users", 'a"b', '"a', '""', 'a."b"c', "a b.c\0", "*.*.*", "a." + "b" * 2000],
)
def test_what_names_no_table_is_refused(text: str) -> None:
    with pytest.raises(FilterError, match="not the name of a table"):
        parse_table_pattern(text)


def test_a_pattern_is_equal_whether_needlessly_quoted_or_not() -> None:
    assert (
        parse_table_pattern('"public"."users"')
        == parse_table_pattern("public.users")
        == TablePattern("public", "users")
    )


@pytest.mark.parametrize(
    ("name", "quoted"), [("a_1$", "a_1$"), ("A", '"A"'), ("1a", '"1a"'), ("null", '"null"'), ("é", '"é"')]
)
def test_only_plain_names_go_without_quotes(name: str, quoted: str) -> None:
    assert quote_identifier(name) == quoted
