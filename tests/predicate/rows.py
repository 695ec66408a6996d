"""A table with a column of each common type, rows of it, and expressions that fit it."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from walstream.model import Catalog, Cell, Column, Relation, RelationInfo
from walstream.predicate import Literals, Predicate, compile  # noqa: A004
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

COLUMNS = (Column("n", 23, "int4"), Column("t", 25, "text"), Column("b", 16, "bool"))
TABLE = Relation("public", "things", COLUMNS, ("n",))

_encode = msgspec.json.Encoder().encode


def catalog(*relations: Relation, ordered: bool = True) -> Catalog:
    """Facts of relations whose texts sort by code point, unless not ``ordered``."""
    facts = Catalog()
    for relation in relations or (TABLE,):
        names = frozenset(column.name for column in relation.columns) if ordered else frozenset[str]()
        facts.load(
            {(relation.schema, relation.name): RelationInfo(1, relation.schema, relation.name, ordered_text=names)}
        )
    return facts


def compiled(expression: Expression, relation: Relation = TABLE, literals: Literals | None = None) -> Predicate:
    return compile(expression, relation, catalog(relation), literals or {})


def table(**types: tuple[int, str]) -> Relation:
    """A relation of columns by name: type OID and name."""
    return Relation("public", "typed", tuple(Column(name, oid, type_) for name, (oid, type_) in types.items()))


def _cells(values: st.SearchStrategy[object]) -> st.SearchStrategy[Cell]:
    return st.none() | st.just(b"null") | values.map(_encode)


texts = st.text("abB%_ é", max_size=3)
rows = st.tuples(_cells(st.integers(-3, 3)), _cells(texts), _cells(st.booleans()))

_numbers = st.integers(-3, 3).map(str)
_operators = st.sampled_from(COMPARISONS)
_leaves: st.SearchStrategy[Expression] = st.one_of(
    st.builds(Compare, st.just("n"), _operators, st.none() | _numbers),
    st.builds(Compare, st.just("t"), _operators, texts),
    st.builds(InList, st.just("n"), st.lists(st.none() | _numbers, max_size=3).map(tuple)),
    st.builds(InList, st.just("t"), st.lists(texts, min_size=1, max_size=3).map(tuple)),
    st.builds(IsNull, st.sampled_from(["n", "t", "b"])),
    st.builds(IsDistinct, st.just("n"), st.none() | _numbers),
    st.builds(IsTruth, st.just("b"), st.sampled_from([True, False, None])),
    st.builds(Holds, st.just("b")),
    st.builds(Like, st.just("t"), texts, st.booleans()),
    st.builds(Regex, st.just("t"), st.sampled_from(["a", "^b", "B|é"]), st.booleans()),
)


def _groups(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(And, parts) | st.builds(Or, parts) | st.builds(Not, inner)


expressions = st.recursive(_leaves, _groups, max_leaves=6)
