"""Formats, errors and exit codes that all commands share."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import unicodedata
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import (
    ConfigError,
    Conflict,
    DatabaseRefused,
    DatabaseUnreachable,
    FilterError,
    InputError,
    Invariant,
    NotFound,
    TokenError,
    WalstreamError,
)
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

ROWS = [{"name": "a", "count": 1, "tags": ["x", "y"]}, {"name": "b, c", "count": None, "tags": []}]


def printed(form: Any, action: str, *args: Any) -> str:
    @click.command()
    def show() -> None:
        getattr(Terminal(form), action)(*args)

    return CliRunner().invoke(show).output_bytes.decode()


def test_rows_are_the_same_in_every_format() -> None:
    assert json.loads(printed("json", "rows", ROWS, ["name", "count"])) == [
        {"name": "a", "count": 1},
        {"name": "b, c", "count": None},
    ]
    assert printed("csv", "rows", ROWS, ["name", "count"]) == 'name,count\na,1\n"b, c",\n'
    assert printed("table", "rows", ROWS, ["name", "count"]).splitlines() == ["name  count", "a     1", "b, c"]


@given(st.lists(st.fixed_dictionaries({"a": st.text(), "b": st.none() | st.integers()})))
def test_csv_reads_back(rows: list[dict[str, object]]) -> None:
    text = printed("csv", "rows", rows, ["a", "b"])
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read[0] == ["a", "b"]
    assert read[1:] == [[str(row["a"]), "" if row["b"] is None else str(row["b"])] for row in rows]


def test_a_record_is_an_object_or_one_line_for_each_field() -> None:
    assert json.loads(printed("json", "record", {"a": 1, "bb": None})) == {"a": 1, "bb": None}
    assert printed("table", "record", {"a": 1, "bb": True}) == "a   1\nbb  yes\n"
    assert printed("csv", "record", {"a": 1, "bb": "x"}) == "a,bb\n1,x\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (True, "yes"), (False, "no"), ([], ""), (["a", 1], "a,1"), ({"a": [1]}, '{"a":[1]}'), (1.5, "1.5"),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 678, dt.UTC), "2026-01-02 03:04:05+00:00"),
    ],
)  # fmt: skip
def test_values_are_shown(value: object, text: str) -> None:
    assert terminal.shown(value) == text


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1))
def test_a_row_of_a_table_is_one_line(lines: list[list[str]]) -> None:
    assert len("\n".join(terminal.aligned(lines)).splitlines() or [""]) <= len(lines)
    assert all("\n" not in line for line in terminal.aligned(lines))


@given(st.text())
def test_nothing_that_is_shown_steers_a_terminal(text: str) -> None:
    shown = terminal.visible(text)
    assert not any(unicodedata.category(character) == "Cc" and character != "\n" for character in shown)
    assert terminal.visible(shown) == shown
    assert "\x1b" not in printed("table", "rows", [{"a": text + "\x1b[2J"}], ["a"])
    assert "\x1b" not in printed("table", "record", {"a": text + "\x1b[2J"})


def test_pictures_and_other_scripts_are_shown_as_they_are() -> None:
    for text in ("👩‍👩‍👧", "مرحبا\u200f", "日本", "a\nb"):
        assert terminal.visible(text) == text
    assert terminal.visible("\x1b[31m\u202ex\t") == "\\x1b[31m\\u202ex\\t"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["a"], ("a", None, None)), (["a", "json"], ("a", None, "json")), (["json"], ("json", None, None)),
        (["json", "json"], ("json", None, "json")), (["a", "b"], ("a", "b", None)),
        (["a", "b", "csv"], ("a", "b", "csv")), (["a", "b", "xml"], None),
        (["a", "json", "json"], ("a", "json", "json")), (["a", "--", "json"], ("a", None, "json")),
    ],
)  # fmt: skip
def test_the_last_word_may_be_a_format(words: list[str], values: tuple[object, ...] | None) -> None:
    @click.command()
    @click.argument("first")
    @click.argument("second", required=False)
    @terminal.options(word=True)
    def show(shell: Terminal, first: str, second: str | None) -> None:
        click.echo(json.dumps([first, second, shell.format]))

    done = CliRunner().invoke(show, words)
    if values is None:
        assert done.exit_code == 2
    else:
        assert json.loads(done.output) == [values[0], values[1], values[2] or "table"]


def test_a_stream_of_pages_is_one_list_in_every_format() -> None:
    pages: list[list[dict[str, object]]] = [[{"a": "x", "b": 1}], [], [{"a": "longer", "b": None}, {"a": "y", "b": 3}]]
    assert json.loads(printed("json", "stream", pages, ["a", "b"])) == [row for page in pages for row in page]
    assert printed("csv", "stream", pages, ["a", "b"]) == "a,b\nx,1\nlonger,\ny,3\n"
    assert printed("table", "stream", pages, ["a", "b"]).splitlines() == ["a  b", "x  1", "longer", "y  3"]
    no_pages: list[list[list[object]]] = [[], [[]]]
    for nothing in no_pages:
        assert json.loads(printed("json", "stream", nothing, ["a", "b"])) == []
        assert printed("csv", "stream", nothing, ["a", "b"]) == "a,b\n"
        assert printed("table", "stream", nothing, ["a", "b"]) == "a  b\n"


def test_numbers_of_json_stay_as_they_were() -> None:
    row = {"a": msgspec.Raw(b'{"n":1.50,"big":12345678901234567890123}')}
    for form in ("table", "csv", "json"):
        assert "12345678901234567890123" in printed(form, "rows", [row], ["a"])
        assert "1.50" in printed(form, "rows", [row], ["a"])


ERRORS: list[tuple[WalstreamError, int]] = [
    (ConfigError("x"), 2),
    (FilterError("x"), 2),
    (InputError("x", repair="y"), 2),
    (Conflict("x"), 1),
    (NotFound("x"), 3),
    (TokenError("InvalidJWTToken", "x"), 4),
    (DatabaseRefused("x", sqlstate="42501"), 4),
    (DatabaseRefused("x", sqlstate="28P01"), 4),
    (DatabaseRefused("x", sqlstate="55006", reason="slot_active"), 1),
    (DatabaseUnreachable("x"), 5),
    (Invariant("x"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_errors_have_their_exit_codes(error: WalstreamError, code: int) -> None:
    assert terminal.exit_code(error) == code


@pytest.mark.parametrize("error", [error for error, _ in ERRORS if terminal.exit_code(error) in (2, 5)])
def test_what_the_caller_can_mend_says_how(error: WalstreamError) -> None:
    assert terminal.repair_of(error)


def test_an_errors_own_repair_comes_first() -> None:
    assert terminal.repair_of(ConfigError("x", repair="y")) == "y"


def test_an_error_is_told_in_words_or_as_an_object() -> None:
    error = DatabaseRefused("first\n\tsecond", sqlstate="55006", reason="slot_active", repair="stop it")
    text = printed("table", "error", error)
    assert text == "error: first second [database_refused: slot_active]\nrepair: stop it\n"
    assert json.loads(printed("json", "error", error)) == {
        "error": {
            "code": "database_refused",
            "message": "first\n\tsecond",
            "repair": "stop it",
            "reason": "slot_active",
            "sqlstate": "55006",
        }
    }


def test_nobody_is_asked_where_nobody_is() -> None:
    @click.command()
    def ask() -> None:
        Terminal().confirm("Really?", force=False)

    done = CliRunner().invoke(ask)
    assert (done.exit_code, "--force" in done.output) == (2, True)
