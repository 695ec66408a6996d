"""Predicates over rows: three truth values, typed comparison, refusals that name the column."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.predicate.rows import TABLE, catalog, compiled, expressions, rows, table
from walstream.errors import FilterError
from walstream.model import Catalog, CatalogMiss, Relation, RelationInfo, Row, TypeInfo
from walstream.predicate import compile, literals_needed  # noqa: A004
from walstream.predicate.expression import (
    And,
    Compare,
    Comparison,
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
    leaves,
)

ABSENT: Row = (None, None, None)
NULLS: Row = (b"null", b"null", b"null")


@given(expressions, expressions, rows)
def test_groups_follow_the_truth_tables_of_sql(left: Expression, right: Expression, row: Row) -> None:
    one, two = compiled(left)(row), compiled(right)(row)
    both = False if False in (one, two) else None if None in (one, two) else True
    either = True if True in (one, two) else None if None in (one, two) else False
    assert compiled(And((left, right)))(row) is both
    assert compiled(Or((left, right)))(row) is either
    assert compiled(Not(left))(row) is (None if one is None else not one)


@given(expressions)
def test_a_row_of_which_the_wal_says_nothing_is_neither_a_match_nor_none(expression: Expression) -> None:
    assume(not any(isinstance(leaf, InList) and not leaf.values for leaf in leaves(expression)))
    assert compiled(expression)(ABSENT) is None


@pytest.mark.parametrize(
    "expression",
    [
        Compare("n", "eq", "1"), Compare("n", "neq", "1"), InList("n", ("1",)), IsNull("n"), IsDistinct("n", "1"),
        IsDistinct("n", None), IsTruth("b", True), IsTruth("b", None), Holds("b"), Like("t", "%"), Regex("t", ""),
    ],
)  # fmt: skip
def test_a_cell_that_is_absent_makes_each_condition_unknown(expression: Expression) -> None:
    assert compiled(expression)(ABSENT) is None


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        (Compare("n", "eq", "1"), None),
        (Compare("n", "neq", "1"), None),
        (InList("n", ("1", "2")), None),
        (InList("n", ()), False),
        (IsNull("n"), True),
        (IsDistinct("n", "1"), True),
        (IsDistinct("n", None), False),
        (IsTruth("b", True), False),
        (IsTruth("b", False), False),
        (IsTruth("b", None), True),
        (Holds("b"), None),
        (Like("t", "%"), None),
        (Regex("t", ""), None),
    ],
)
def test_null_is_unknown_except_to_what_asks_for_it(expression: Expression, answer: bool | None) -> None:
    assert compiled(expression)(NULLS) is answer


def test_a_list_with_null_in_it_is_never_false() -> None:
    listed = compiled(InList("n", ("1", None)))
    assert listed((b"1", None, None)) is True
    assert listed((b"2", None, None)) is None


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.sampled_from(["lt", "lte", "gt", "gte"]))
def test_integers_compare_as_numbers(left: int, right: int, op: Comparison) -> None:
    compare: Callable[[int, int], bool] = {
        "lt": int.__lt__, "lte": int.__le__, "gt": int.__gt__, "gte": int.__ge__,
    }[op]  # fmt: skip
    assert compiled(Compare("n", op, str(right)))((b"%d" % left, None, None)) is compare(left, right)


def test_an_unknown_column_is_named_in_supabases_words() -> None:
    with pytest.raises(FilterError, match="invalid column for filter nope"):
        compiled(Compare("nope", "eq", "1"))
    with pytest.raises(FilterError, match="invalid column for filter nope"):
        compiled(Or((IsNull("n"), Not(IsNull("nope")))))


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (Compare("n", "eq", "x"), 'column n: invalid input syntax for type integer: "x"'),
        (InList("n", ("1", "x")), 'column n: invalid input syntax for type integer: "x"'),
        (IsDistinct("n", "2147483648"), 'column n: value "2147483648" is out of range for type integer'),
        (Like("n", "1%"), "column n is of type int4, for which LIKE is not supported"),
        (Regex("b", "t", True), r"column b is of type bool, for which ~\* is not supported"),
        (Holds("n"), "column n is of type int4, for which a condition of its own is not supported"),
        (IsTruth("t", True), "column t is of type text, for which IS TRUE, FALSE or UNKNOWN is not supported"),
        (Like("t", "a\\"), "LIKE pattern must not end with escape character"),
        (Regex("t", "(?=a)"), r"regular expression: \(\?="),
        (Compare("n", "eq", "1", "text"), "column n is of type int4, and its literal is cast to text"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_column(expression: Expression, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        compiled(expression)


def test_text_is_ordered_only_where_its_collation_orders_by_code_point() -> None:
    expression = Compare("t", "lt", "b")
    with pytest.raises(FilterError, match="column t: < is not supported"):
        compile(expression, TABLE, catalog(ordered=False), {})
    assert compile(expression, TABLE, catalog(), {})((None, b'"a"', None)) is True
    assert compile(Compare("t", "eq", "b"), TABLE, catalog(ordered=False), {})((None, b'"b"', None)) is True


def test_a_partition_is_ordered_as_its_own_facts_say() -> None:
    leaf = Relation("public", "things", TABLE.columns, leaf=("parts", "things_1"))
    facts = Catalog()
    facts.load({("parts", "things_1"): RelationInfo(1, "parts", "things_1", ordered_text=frozenset({"t"}))})
    assert compile(Compare("t", "lt", "b"), leaf, facts, {})((None, b'"a"', None)) is True


def test_text_of_a_collation_that_is_not_deterministic_is_not_compared() -> None:
    facts = Catalog()
    facts.load({("public", "things"): RelationInfo(1, "public", "things", fuzzy_text=frozenset({"t"}))})
    for expression in (Compare("t", "eq", "a"), InList("t", ("a",)), Like("t", "a"), Regex("t", "a")):
        with pytest.raises(FilterError, match="column t: its collation"):
            compile(expression, TABLE, facts, {})


def test_case_outside_ascii_is_that_of_the_columns_collation() -> None:
    facts = Catalog()
    facts.load({("public", "things"): RelationInfo(1, "public", "things", ascii_case=frozenset({"t"}))})
    row = (None, '"ÉA"'.encode(), None)
    for expression in (Like("t", "éa", True), Regex("t", "^éa$", True), Regex("t", "^[[:alpha:]]+$")):
        assert compiled(expression)(row) is True
        assert compile(expression, TABLE, facts, {})(row) is False


MOOD = TypeInfo(90001, "mood", kind="e", category="E", labels=("sad", "ok", "happy"))
POSITIVE = TypeInfo(90002, "positive", kind="d", category="N", base=23)
WHEN = TypeInfo(90003, "moment", kind="d", category="D", base=1184)


def typed_catalog() -> Catalog:
    facts = Catalog()
    facts.load(types={info.oid: info for info in (MOOD, POSITIVE, WHEN)} | {90009: None})
    return facts


def test_enums_are_ordered_by_their_labels_and_a_label_that_is_too_new_is_unknown() -> None:
    relation = table(m=(90001, "mood"))
    literals = {(90001, "ok"): b'"ok"'}
    more = compile(Compare("m", "gt", "ok"), relation, typed_catalog(), literals)
    assert [more((cell,)) for cell in (b'"sad"', b'"ok"', b'"happy"', b'"ecstatic"')] == [False, False, True, None]
    same = compile(Compare("m", "eq", "ok"), relation, typed_catalog(), literals)
    assert [same((cell,)) for cell in (b'"sad"', b'"ok"', b'"ecstatic"')] == [False, True, False]


def test_domains_compare_as_what_is_below_them() -> None:
    relation = table(p=(90002, "positive"), w=(90003, "moment"))
    expression = And((Compare("p", "gt", "0"), Compare("w", "lt", "today")))
    facts = typed_catalog()
    assert literals_needed(expression, relation, facts) == {(1184, "today")}
    assert literals_needed(expression, relation) == {(90002, "0"), (90003, "today")}
    predicate = compile(expression, relation, facts, {(1184, "today"): b'"2024-02-29T00:00:00+00:00"'})
    assert predicate((b"1", b'"2024-02-28T00:00:00+00:00"')) is True


def test_a_type_that_was_not_loaded_is_asked_for_and_one_that_is_gone_compares_with_nothing() -> None:
    with pytest.raises(CatalogMiss) as caught:
        compile(Compare("x", "eq", "1"), table(x=(90008, "new")), typed_catalog(), {})
    assert caught.value.types == {90008}
    gone = table(x=(90009, "gone"))
    with pytest.raises(FilterError, match="column x is of type unknown"):
        compile(Compare("x", "eq", "1"), gone, typed_catalog(), {})
    assert compile(IsNull("x"), gone, typed_catalog(), {})((b"null",)) is True


@pytest.mark.parametrize(
    ("oid", "name"), [(1186, "interval"), (790, "money"), (600, "point"), (142, "xml"), (114, "json"), (1007, "_int4")]
)
def test_types_that_only_postgresql_can_compare_are_refused_by_name(oid: int, name: str) -> None:
    facts = Catalog()
    facts.load(types={oid: TypeInfo(oid, name, element=23 if name == "_int4" else 0)})
    with pytest.raises(FilterError, match=f"column x is of type {name}, for which = is not supported"):
        compile(Compare("x", "eq", "1"), table(x=(oid, name)), facts, {(oid, "1"): b'"1"'})
    assert compile(Not(IsNull("x")), table(x=(oid, name)), facts, {})((b'"1"',)) is True


def test_types_without_an_order_here_are_refused_for_it_alone() -> None:
    relation = table(a=(869, "inet"))
    literals = {(869, "10.0.0.1"): b'"10.0.0.1"'}
    assert compile(Compare("a", "eq", "10.0.0.1"), relation, Catalog(), literals)((b'"10.0.0.1/32"',)) is True
    with pytest.raises(FilterError, match="column a is of type inet, for which < is not supported"):
        compile(Compare("a", "lt", "10.0.0.1"), relation, Catalog(), literals)


def test_what_postgresql_says_to_a_literal_is_passed_on_and_a_literal_that_was_not_cast_is_named() -> None:
    relation = table(d=(1082, "date"))
    expression = Compare("d", "eq", "soon")
    assert literals_needed(expression, relation) == {(1082, "soon")}
    refused = {(1082, "soon"): 'invalid input syntax for type date: "soon"'}
    with pytest.raises(FilterError, match="column d: invalid input syntax for type date"):
        compile(expression, relation, Catalog(), refused)
    with pytest.raises(FilterError, match="column d: the literal 'soon' was not cast to date"):
        compile(expression, relation, Catalog(), {})


def test_only_literals_that_postgresql_must_read_are_asked_for() -> None:
    relation = table(n=(20, "int8"), t=(25, "text"), u=(2950, "uuid"), f=(701, "float8"), d=(1082, "date"))
    expression = And(
        (
            Compare("n", "eq", "1"), Compare("t", "eq", "1"), Compare("u", "eq", "1"), Compare("f", "lt", "1"),
            InList("f", ("2", None)), Not(IsDistinct("d", "3")), IsDistinct("d", None), Compare("gone", "eq", "4"),
        )
    )  # fmt: skip
    assert literals_needed(expression, relation) == {(701, "1"), (701, "2"), (1082, "3")}


@pytest.mark.parametrize(
    ("word", "below", "above"), [("Infinity", True, False), ("NaN", True, False), ("-inf", False, True)]
)
def test_numbers_that_json_does_not_have_still_bound_those_it_has(word: str, below: bool, above: bool) -> None:
    for oid, name in ((701, "float8"), (1700, "numeric")):
        relation, literals = table(f=(oid, name)), {(oid, word): b"null"}
        assert compile(Compare("f", "lt", word), relation, Catalog(), literals)((b"1.5",)) is below
        assert compile(Compare("f", "gt", word), relation, Catalog(), literals)((b"1.5",)) is above
        assert compile(Compare("f", "eq", word), relation, Catalog(), literals)((b"1.5",)) is False
        assert compile(Compare("f", "lt", word), relation, Catalog(), literals)((b"null",)) is None


def test_json_null_is_no_literal_because_a_row_cannot_be_told_from_one_with_null() -> None:
    with pytest.raises(FilterError, match="cannot be told from NULL"):
        compile(Compare("j", "eq", "null"), table(j=(3802, "jsonb")), Catalog(), {(3802, "null"): b"null"})


@given(expressions, st.tuples(*[st.none() | st.binary(max_size=6)] * 3))
def test_no_cell_whatever_it_holds_makes_a_predicate_raise(expression: Expression, row: Row) -> None:
    assert compiled(expression)(row) in (True, False, None)
