"""Formulas bound to claims answer for each row what SQL's three-valued logic says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.model import Catalog, Relation, TypeInfo
from walstream.model import Column as RowColumn
from walstream.policy import Viewer
from walstream.policy.formula import (
    BPCHAR,
    ENUM,
    All,
    Bound,
    Column,
    ColumnCompare,
    ColumnDistinct,
    ColumnHolds,
    ColumnIn,
    ColumnInKeys,
    ColumnIsNull,
    Constant,
    Either,
    Formula,
    Negation,
    Row,
    TermCompare,
    Test,
    Told,
    settle,
)  # fmt: skip
from walstream.policy.terms import (
    BOOL,
    INT2,
    INT4,
    JSONB,
    TEXT,
    UUID,
    Elements,
    Fixed,
    Listed,
    Member,
    Read,
    Session,
    Setting,
    Unsure,
)  # fmt: skip
from walstream.predicate import Expression, compile, normalise  # noqa: A004

Test.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test

MOOD = 70000
COLUMNS = (
    RowColumn("yes", BOOL, "bool"), RowColumn("t", TEXT, "text"), RowColumn("n", INT2, "int2"),
    RowColumn("u", UUID, "uuid"), RowColumn("m", MOOD, "mood"), RowColumn("j", JSONB, "jsonb"),
    RowColumn("f", 701, "float8"),
)  # fmt: skip
RELATION = Relation("public", "t", COLUMNS)
CATALOG = Catalog()
CATALOG.load(types={column.type_oid: TypeInfo(column.type_oid, column.type_name) for column in COLUMNS})
CATALOG.load(types={MOOD: TypeInfo(MOOD, "mood", "e", labels=("sad", "ok"))})

YES, T, N = Column("yes", BOOL, BOOL), Column("t", TEXT, TEXT), Column("n", INT2, INT2)
SESSION = Session(Viewer("anon", '{"teams": ["a", "b"], "none": []}'))
CLAIMS = Read(Setting("request.jwt.claims"), JSONB)
CELLS = {"yes": (b"true", b"false", b"null"), "t": (b'"a"', b'"c"', b"null")}


def bind(formula: Formula) -> Bound:
    return formula(SESSION, Row(RELATION, CATALOG, set()))


def answers(bound: Bound) -> list[bool | None]:
    """For each pair of cells of the two columns that the property is about."""
    rows = [(yes, t, b"null", b"null", b"null", b"null", b"null") for yes, t in pairs()]
    if bound is None or isinstance(bound, bool):
        return [bound] * len(rows)
    predicate = compile(bound, RELATION, CATALOG, {(MOOD, "ok"): b'"ok"'})
    return [predicate(row) for row in rows]


def pairs() -> Sequence[tuple[bytes, bytes]]:
    return list(itertools.product(CELLS["yes"], CELLS["t"]))


def sql_and(values: Sequence[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def sql_or(values: Sequence[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def sql_in(cell: bytes, items: Sequence[str | None]) -> bool | None:
    if not items:
        return False
    if cell == b"null":
        return None
    if cell[1:-1].decode() in items:
        return True
    return None if None in items else False


ITEMS: Sequence[tuple[str | None, ...]] = ((), ("a",), ("a", None), (None,), ("x", "y"))
Meaning = tuple[Formula, list["bool | None"]]


def leaf() -> st.SearchStrategy[Meaning]:
    constants = [(Constant(value), [value] * len(pairs())) for value in (True, False, None)]
    held: Meaning = (ColumnHolds(YES), [{b"true": True, b"false": False}.get(yes) for yes, _ in pairs()])
    nulls: Meaning = (ColumnIsNull(T), [t == b"null" for _, t in pairs()])
    lists: list[Meaning] = [
        (ColumnIn(T, Listed(tuple(Fixed(TEXT, item) for item in items))), [sql_in(t, items) for _, t in pairs()])
        for items in ITEMS
    ]
    teams: Meaning = (ColumnIn(T, Elements(Member(CLAIMS, "teams"))), [sql_in(t, ("a", "b")) for _, t in pairs()])
    return st.sampled_from([*constants, held, nulls, *lists, teams])


def join(parts: list[Meaning], conjoin: bool) -> Meaning:
    values = zip(*(meaning for _, meaning in parts), strict=True)
    if conjoin:
        return All(tuple(formula for formula, _ in parts)), [sql_and(each) for each in values]
    return Either(tuple(formula for formula, _ in parts)), [sql_or(each) for each in values]


def opposite(part: Meaning) -> Meaning:
    return Negation(part[0]), [None if value is None else not value for value in part[1]]


MEANINGS = st.recursive(
    leaf(),
    lambda inner: st.builds(join, st.lists(inner, min_size=1, max_size=3), st.booleans()) | st.builds(opposite, inner),
    max_leaves=8,
)


@given(MEANINGS)
def test_bound_formulas_mean_what_sql_says(case: Meaning) -> None:
    formula, meaning = case
    bound = bind(formula)
    assert answers(bound) == meaning
    visible = [value is True for value in meaning]
    settled = settle(bound)
    assert [value is True for value in answers(settled)] == visible
    if not isinstance(settled, bool):
        assert [value is True for value in answers(normalise(settled))] == visible


@given(MEANINGS, st.sampled_from([True, False, None]))
def test_tests_are_exact_or_unsure(case: Meaning, wanted: bool | None) -> None:
    formula, meaning = case
    try:
        bound = bind(Test(formula, wanted))
    except Unsure:
        return
    assert answers(bound) == [value is wanted for value in meaning]


@pytest.mark.parametrize(
    ("formula", "row", "answer"),
    [
        (ColumnCompare(N, "eq", Fixed(INT4, 7)), {"n": b"7"}, True),
        (ColumnCompare(N, "eq", Fixed(INT4, 70000)), {"n": b"7"}, False),
        (ColumnCompare(N, "eq", Fixed(INT4, 70000)), {}, None),
        (ColumnCompare(N, "neq", Fixed(INT4, 70000)), {"n": b"7"}, True),
        (ColumnCompare(N, "neq", Fixed(INT4, 70000)), {}, None),
        (ColumnDistinct(N, Fixed(INT4, 70000)), {}, True),
        (ColumnDistinct(N, Fixed(INT4, 7)), {"n": b"7"}, False),
        (ColumnDistinct(N, Fixed(INT4, None)), {}, False),
        (ColumnCompare(Column("n", INT2, TEXT, printed=True), "eq", Fixed(TEXT, "7")), {"n": b"7"}, True),
        (ColumnCompare(Column("n", INT2, TEXT, printed=True), "eq", Fixed(TEXT, "07")), {"n": b"7"}, False),
        (ColumnInKeys(T, Member(CLAIMS, "teams")), {"t": b'"b"'}, True),
        (ColumnInKeys(T, Member(CLAIMS, "none")), {"t": b'"b"'}, False),
        (ColumnInKeys(T, Member(CLAIMS, "none")), {}, None),
        (ColumnInKeys(T, Member(CLAIMS, "absent")), {"t": b'"b"'}, None),
        (ColumnIn(T, Elements(Member(CLAIMS, "none"))), {}, False),
        (ColumnCompare(Column("m", MOOD, ENUM), "gte", Fixed(MOOD, "ok")), {"m": b'"ok"'}, True),
    ],
)
def test_answer(formula: Formula, row: dict[str, bytes], answer: bool | None) -> None:
    bound = bind(formula)
    if bound is not None and not isinstance(bound, bool):
        cells = tuple(row.get(column.name, b"null") for column in COLUMNS)
        bound = compile(bound, RELATION, CATALOG, {(MOOD, "ok"): b'"ok"'})(cells)
    assert bound is answer


@pytest.mark.parametrize(
    "formula",
    [
        ColumnIsNull(Column("j", JSONB, 0)),
        ColumnIsNull(Column("f", 701, 0)),
        ColumnIsNull(Column("absent", TEXT, 0)),
        ColumnIsNull(Column("t", UUID, 0)),
        ColumnCompare(Column("t", TEXT, UUID), "eq", Fixed(UUID, "x")),
        ColumnCompare(Column("t", TEXT, BPCHAR), "eq", Fixed(BPCHAR, "x")),
        ColumnCompare(Column("t", TEXT, TEXT, printed=True), "eq", Fixed(TEXT, "x")),
        ColumnCompare(Column("t", TEXT, ENUM), "eq", Fixed(MOOD, "x")),
        ColumnCompare(N, "lt", Fixed(INT4, 70000)),
        TermCompare(Fixed(TEXT, "a"), "lt", Fixed(TEXT, "b")),
        TermCompare(Setting("role"), "eq", Setting("role")),
        Either((Constant(True), Told(Read(Member(CLAIMS, "teams", as_text=True), BOOL)))),
    ],
)
def test_unsure(formula: Formula) -> None:
    with pytest.raises(Unsure):
        bind(formula)


def test_enums_that_are_compared_are_remembered() -> None:
    row = Row(RELATION, CATALOG, set())
    ColumnIn(Column("m", MOOD, ENUM), Listed((Fixed(MOOD, "ok"), Fixed(MOOD, None))))(SESSION, row)
    assert row.enums == {(MOOD, "ok")}


def test_settling_drops_what_is_never_true() -> None:
    settled = settle(bind(ColumnIn(T, Listed((Fixed(TEXT, "a"), Fixed(TEXT, None))))))
    assert settled == settle(bind(ColumnIn(T, Listed((Fixed(TEXT, "a"),)))))
    never: Expression | bool = settle(bind(ColumnCompare(N, "eq", Fixed(INT4, 70000))))
    assert never is False
