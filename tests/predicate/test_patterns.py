"""LIKE and regular expressions: the same answers as a matcher that tries everything, in bounded work."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import FilterError
from walstream.predicate import like, regex
from walstream.predicate.letters import cases, fold


def slow_like(pattern: str, text: str) -> bool:
    """The definition, by trying every length for each %."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(slow_like(pattern[1:], text[at:]) for at in range(len(text) + 1))
    if pattern[0] == "\\":
        pattern = pattern[1:]
    elif pattern[0] == "_":
        return bool(text) and slow_like(pattern[1:], text[1:])
    return text[:1] == pattern[0] and slow_like(pattern[1:], text[1:])


@given(st.text("ab%_\\\n", max_size=8), st.text("ab%_\\\n", max_size=8))
def test_like_answers_as_its_definition(pattern: str, text: str) -> None:
    try:
        match = like.matcher(pattern)
    except FilterError:
        trailing = len(pattern) - len(pattern.rstrip("\\"))
        assert trailing % 2 == 1
        return
    assert match(text) is slow_like(pattern, text)


LETTERS = "aAéÉß\u03c3\u03c2\u03a3\u0130"  # sigma in its three forms, capital I with a dot


@given(st.text(LETTERS + "%_", max_size=6), st.text(LETTERS, max_size=6))
def test_ilike_is_like_of_both_sides_in_lower_case(pattern: str, text: str) -> None:
    assert like.matcher(pattern, insensitive=True)(text) is like.matcher(fold(pattern))(fold(text))


@given(st.text())
def test_folding_keeps_the_length_and_ascii_folding_keeps_the_rest(text: str) -> None:
    assert len(fold(text)) == len(text)
    assert [c for c in fold(text, True) if not c.isascii()] == [c for c in text if not c.isascii()]


@given(st.characters())
def test_a_character_is_one_of_its_cases(char: str) -> None:
    assert char in cases(char)
    assert cases(char, True) == cases(char) or not char.isascii()


def test_a_like_pattern_is_bounded_and_so_is_the_work_on_a_long_text() -> None:
    with pytest.raises(FilterError, match="LIKE pattern of more than"):
        like.matcher("a" * (like.PATTERN_CHARACTERS_MAX + 1))
    hostile = like.matcher("%a" + "_" * 900 + "b%")
    assert hostile("a" * 2000) is False
    with pytest.raises(ValueError, match="too long for the pattern"):
        hostile("a" * 100_000)
    assert like.matcher("%b%")("a" * 100_000 + "b") is True


_atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(?:a|b)", "(ab)", "", "\\.", "[a-b]"])
_quantified = st.tuples(_atoms, st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,}"])).map(
    lambda pair: pair[0] + (pair[1] if pair[0] else "")
)
_branches = st.lists(_quantified, max_size=4).map("".join)
_anchored = st.tuples(st.sampled_from(["", "^"]), _branches, st.sampled_from(["", "$"])).map("".join)
patterns = st.lists(_anchored, min_size=1, max_size=2).map("|".join)


@given(patterns, st.text("ab.", max_size=8))
def test_regular_expressions_find_what_a_backtracking_engine_finds(pattern: str, text: str) -> None:
    assert regex.matcher(pattern)(text) is (re.search(pattern.replace("$", "\\Z"), text, re.DOTALL) is not None)


@given(st.text("ab().*+?{}[]^$|\\,12-:dwsmyAZ", max_size=12))
def test_any_text_is_a_regular_expression_or_a_filter_error(pattern: str) -> None:
    with contextlib.suppress(FilterError):
        assert regex.matcher(pattern)("ab1 .") in (True, False)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("\\ycat\\y", "a cat.", "concat"),
        ("\\mcat", "cats", "concat"),
        ("cat\\M", "tomcat", "cats"),
        ("o\\Yo", "foot", "o o"),
        ("\\Aab\\Z", "ab", "cab"),
        ("^\\d+$", "0123", "12a"),
        ("^\\D\\W\\S$", "a-b", "1-b"),
        ("[[:upper:]][[:digit:]_]{2}", "xA1_", "a1_"),
        ("^[]a-]+$", "]-a", "b"),
        ("^[^[:space:]]+$", "ab", "a b"),
        ("a{,2}", "a{,2}", "aa"),
        ("^.$", "\n", ""),
        ("^(|a)$", "", "b"),
    ],
)
def test_constructs_mean_what_they_mean_in_postgresql(pattern: str, yes: str, no: str) -> None:
    match = regex.matcher(pattern)
    assert match(yes) is True
    assert match(no) is False


def test_classes_of_one_case_hold_for_both_when_case_does_not_count() -> None:
    assert regex.matcher("^[[:upper:]]b$", insensitive=True)("aB") is True
    assert regex.matcher("^[a-c]É$", insensitive=True)("Bé") is True
    assert regex.matcher("^[^a]$", insensitive=True)("A") is False


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(?=a)", r"\(\?= at character 2"),
        ("(?i)a", r"\(\?i"),
        ("(a)\\1", r"\\1 at character 5"),
        ("\\bcat", r"\\b .*\(write \\y"),
        ("[[.a.]]", r"\[\."),
        ("[[=a=]]", r"\[="),
        ("[[:nope:]]", r"\[:nope:\]"),
        ("[[:alpha:", r"\[:alpha:"),
        ("[b-a]", "the range b-a"),
        ("[a-c-e]", "a range behind a range"),
        ("[a--]", "the range a--"),
        ("a**", "a quantifier behind a quantifier"),
        ("^*", r"\* behind a place"),
        ("*a", "a quantifier with nothing before it"),
        ("a|*", "nothing before it"),
        ("a{2,1}", r"the repetition \{2,1\}"),
        ("a{256}", r"the repetition \{256\}"),
        ("a{1", "a quantifier without its end"),
        ("(a", "a group without its end"),
        ("a)", "a closing parenthesis"),
        ("[a", "a bracket without its end"),
        ("a\\", r"\\ at character 2"),
        ("***=a", r"the prefix \*\*\*"),
        ("(" * 40 + ")" * 40, "nesting of more than 30 groups"),
    ],
)
def test_what_is_not_regular_or_no_expression_is_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        regex.matcher(pattern)


@pytest.mark.parametrize("pattern", ["(((a{9}){9}){9}){9}", "((((){255}){255}){255}){255}", "(((a?){200}){200})"])
def test_repetition_of_repetition_is_bounded(pattern: str) -> None:
    with pytest.raises(FilterError, match="too complex"):
        regex.matcher(pattern)


def test_patterns_that_make_others_backtrack_for_ever_are_answered() -> None:
    text = "a" * 3000
    assert regex.matcher("(((a*)*)*)b")(text) is False
    assert regex.matcher("(a|aa|a?)+$b")(text) is False
    assert regex.matcher(".*.*.*.*.*x")(text) is False
    # Every other character doubles what a deterministic automaton has to remember: its memory is given back.
    assert regex.matcher("(a|b)*a(a|b){12}c")("ab" * 3000) is False


def test_a_search_that_takes_too_much_work_is_given_up() -> None:
    hostile = regex.matcher("(a|b)*a(a|b){200}c")
    with pytest.raises(ValueError, match="too much work"):
        hostile(bin(3**20_000)[2:].replace("0", "a").replace("1", "b"))
    assert hostile("a" * 100) is False


def test_patterns_and_texts_have_a_length_beyond_which_nothing_is_tried() -> None:
    with pytest.raises(FilterError, match="more than 500 characters"):
        regex.matcher("a" * 501)
    with pytest.raises(ValueError, match="too long"):
        regex.matcher("a")("b" * (regex.TEXT_CHARACTERS_MAX + 1))
