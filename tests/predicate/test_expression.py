"""Normalising: one form for filters that mean the same, and the same answer for every row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.predicate.rows import COLUMNS, TABLE, compiled, expressions, rows
from walstream.errors import FilterError
from walstream.model import Row
from walstream.predicate.expression import (
    And,
    Compare,
    Expression,
    InList,
    IsNull,
    Not,
    Or,
    canonical,
    check_text,
    columns_of,
    leaves,
    normalise,
)

A, B, C = IsNull("a"), IsNull("b"), Compare("c", "gt", "1")


@given(expressions, rows)
def test_normalising_changes_no_answer(expression: Expression, row: Row) -> None:
    assert compiled(normalise(expression))(row) is compiled(expression)(row)


@given(expressions)
def test_normalising_twice_changes_nothing_more(expression: Expression) -> None:
    once = normalise(expression)
    assert normalise(once) == once


@given(st.permutations([A, B, C]), st.sampled_from([And, Or]))
def test_the_order_of_parts_does_not_count(parts: list[Expression], kind: type[And | Or]) -> None:
    assert normalise(kind(tuple(parts))) == normalise(kind((A, B, C)))


def test_groups_within_like_groups_are_flattened_and_parts_named_twice_are_kept_once() -> None:
    assert normalise(And((A, And((B, A)), A))) == normalise(And((A, B)))
    assert normalise(Or((A, Or((A,))))) == A


def test_a_doubled_negation_goes_and_its_group_joins_the_one_around() -> None:
    assert normalise(Not(Not(A))) == A
    assert normalise(And((A, Not(Not(And((B, C))))))) == normalise(And((A, B, C)))


def test_equalities_of_one_column_become_one_list() -> None:
    either = Or((Compare("a", "eq", "2"), Compare("a", "eq", "1"), InList("a", ("3", "2"))))
    assert normalise(either) == InList("a", ("1", "2", "3"))
    assert normalise(InList("a", ("1", "1"))) == Compare("a", "eq", "1")


def test_equalities_with_different_casts_stay_apart() -> None:
    either = Or((Compare("a", "eq", "2", "int4"), Compare("a", "eq", "1")))
    assert len(list(leaves(normalise(either)))) == 2


@given(expressions, expressions)
def test_canonical_bytes_are_equal_exactly_for_equal_trees(left: Expression, right: Expression) -> None:
    assert (canonical(left) == canonical(right)) == (left == right)


@given(expressions)
def test_the_columns_are_those_of_the_leaves(expression: Expression) -> None:
    assert columns_of(expression) == {leaf.column for leaf in leaves(expression)}
    assert columns_of(expression) <= {column.name for column in COLUMNS}
    assert columns_of(expression) <= TABLE.positions.keys()


@pytest.mark.parametrize("text", ["a" * 11, "a\0", "\ud800"])
def test_a_text_that_cannot_be_a_filter_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        check_text(text, 10)
