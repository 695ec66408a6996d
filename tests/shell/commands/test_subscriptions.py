"""Names, columns and rows as far as they need no server; the rest is in integration/cli/test_subscribe.py."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.capture import parse_table_pattern, quote_identifier, subscription_row
from walstream.errors import FilterError
from walstream.shell.commands import preflight_tables, subscriptions

IDENTIFIER = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63)


@pytest.mark.parametrize(
    ("text", "names"),
    [("a", ("a",)), (" a , B ", ("a", "B")), ("a,a", ("a",)), ('"a b","c""d"', ("a b", 'c"d')), ('"', ('"',))],
)
def test_columns_are_names_of_the_catalogue(text: str, names: tuple[str, ...]) -> None:
    assert subscriptions.parse_columns(text) == names


@pytest.mark.parametrize("text", ["", ",", "a,", ' "" '])
def test_a_column_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(FilterError, match="columns"):
        subscriptions.parse_columns(text)


@given(st.lists(IDENTIFIER.filter(lambda name: "," not in name), min_size=1, unique=True))
def test_quoted_columns_are_read_back(names: list[str]) -> None:
    text = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    assert subscriptions.parse_columns(text) == tuple(names)


@given(st.text())
def test_columns_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(FilterError):
        assert all(subscriptions.parse_columns(text))


@given(schema=IDENTIFIER, table=IDENTIFIER | st.none())
def test_the_name_of_a_row_means_what_the_row_means(schema: str, table: str | None) -> None:
    name = f"{quote_identifier(schema)}.{'*' if table is None else quote_identifier(table)}"
    row = subscription_row("1", name, ["INSERT"])
    assert parse_table_pattern(preflight_tables.name_of(row)) == row.pattern


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("Public.Users", "Public.Users"), ("public.Users", "public.Users"), ('Public."a b"', 'Public."a b"'),
        ("Shop.*", "Shop.*"), ("*.*", "*.*"), ("Users", "Users"), ("a.b.c", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_row_is_named_as_it_was_written(stored: str, name: str) -> None:
    assert preflight_tables.name_of(subscription_row("1", stored, ["INSERT"])) == name


def test_a_row_is_told_in_words() -> None:
    row = subscription_row("1", "public.users", ["delete", "INSERT"], "id > 1", ["id", "name"])
    assert preflight_tables.told(row) == "captured: INSERT, DELETE where id > '1', columns id, name"
    assert preflight_tables.told(subscription_row("1", "public.users", ["*"])) == "captured: INSERT, UPDATE, DELETE"
