"""Conditions of policies that are understood, and what is left of them for one viewer: an answer, or a filter.

A formula is bound under SQL's three-valued logic and never says more than PostgreSQL would: where that is in question
binding raises ``Unsure``. What the SQL looks like is told in ``recognise``, values of claims are in ``terms``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

from walstream.model import Catalog, Relation
from walstream.policy.terms import (
    BOOL,
    INPUTS,
    INT2,
    INT4,
    INT8,
    JSON,
    JSONB,
    TEXT,
    UUID,
    VARCHAR,
    Comparison,
    Document,
    List,
    Scalar,
    Session,
    Term,
    Unsure,
    print_scalar,
    read_text,
)
from walstream.predicate import Expression
from walstream.predicate.expression import (
    And,
    Compare,
    Holds,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Not,
    Or,
)
from walstream.predicate.types import base_oid, kind_of

BPCHAR, ENUM = 1042, 3500

LOOSE: Final = frozenset({JSON, 700, 701, 1700, JSONB})
"""json, float4, float8, numeric, jsonb: in JSON a null of theirs may be another value (docs/reference/values.md)."""

_PRINTED: Final = frozenset({INT2, INT4, INT8, UUID})
_COLUMNS_OF: Final = {TEXT: frozenset({TEXT, VARCHAR}), **{oid: frozenset({oid}) for oid in (*_PRINTED, BOOL, BPCHAR)}}

Bound: TypeAlias = "bool | Expression | None"
"""What is left of a condition: a constant, None for NULL, or a condition on the row."""


class Row(msgspec.Struct):
    """The row's side of binding: what its columns are. ``enums``: type and label of those met in comparisons."""

    relation: Relation
    catalog: Catalog
    enums: set[tuple[int, str]]

    def kind(self, column: Column) -> int:
        """The OID of the column's type below domains. Raises Unsure for another than the policy saw, CatalogMiss."""
        at = self.relation.positions.get(column.name)
        if at is None or self.relation.columns[at].type_oid != column.type:
            raise Unsure(f"another column {column.name}")
        return base_oid(column.type, self.catalog)


class Column(msgspec.Struct, frozen=True):
    """A column of the row. ``type``: its type's OID. ``side``: the type as which it is compared, ENUM for any enum.

    ``printed``: it is compared as its cast to text.
    """

    name: str
    type: int
    side: int
    printed: bool = False

    def check(self, row: Row) -> None:
        """Raise Unsure unless the column can be compared as ``side`` here."""
        oid = row.kind(self)
        if self.printed:
            possible = oid in _PRINTED
        elif self.side == ENUM:
            info = row.catalog.types.get(oid)
            possible = info is not None and info.kind == "e"
        else:
            possible = oid in _COLUMNS_OF.get(self.side, ())
        if not possible:
            raise Unsure(f"the type of {self.name}")

    def literal(self, value: Scalar, row: Row) -> str | None:
        """A value of the column's side as the column's literal; None if no value of the column can be equal to it."""
        text = print_scalar(value)
        oid = row.kind(self)
        if self.side == ENUM:
            row.enums.add((oid, text))
        if oid not in INPUTS or isinstance(value, bool):
            return text
        try:
            same = print_scalar(read_text(text, oid)) == text
        except Unsure:
            same = False
        return text if same else None


def never(column: str) -> Expression:
    """NULL where the column is NULL, else false."""
    return And((IsNull(column), Compare(column, "eq", None)))


class _Condition(msgspec.Struct, frozen=True):
    def __call__(self, session: Session, row: Row) -> Bound:
        """What is left of the condition for a viewer. Raises Unsure, CatalogMiss."""
        return self._bound(session, row)

    def _bound(self, session: Session, row: Row) -> Bound:
        raise Unsure(type(self).__name__)


class Constant(_Condition, frozen=True):
    """``true``, ``false``, ``null``."""

    value: bool | None

    def _bound(self, session: Session, row: Row) -> Bound:
        return self.value


class Told(_Condition, frozen=True):
    """A boolean made of claims."""

    term: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        value = self.term(session)
        assert value is None or isinstance(value, bool)
        return value


class TermIsNull(_Condition, frozen=True):
    """``term is null``."""

    term: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        return self.term(session) is None


class TermCompare(_Condition, frozen=True):
    """``left op right``, both made of claims."""

    left: Term
    op: Comparison
    right: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        if self.left == self.right:
            # PostgreSQL's planner may refuse: "cannot cope with variable-free clause".
            raise Unsure("a value compared with itself")
        left, right = self.left(session), self.right(session)
        if left is None or right is None:
            return None
        return compare(left, self.op, right)


def compare(left: Scalar, op: Comparison, right: Scalar) -> bool:
    """Two values of one kind. Raises Unsure for texts' order, which is a collation's."""
    if op == "eq":
        return left == right
    if op == "neq":
        return left != right
    if not isinstance(left, int) or not isinstance(right, int):
        raise Unsure("an order that is not repeated")
    return {"lt": left < right, "lte": left <= right, "gt": left > right, "gte": left >= right}[op]


class TermDistinct(_Condition, frozen=True):
    """``left is distinct from right``, both made of claims."""

    left: Term
    right: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        return self.left(session) != self.right(session)


class TermIn(_Condition, frozen=True):
    """``term = any (values)``."""

    term: Term
    values: List

    def _bound(self, session: Session, row: Row) -> Bound:
        value, values = self.term(session), self.values(session)
        if values is None:
            return None
        if not values:
            return False
        if value is None:
            return None
        if value in values:
            return True
        return None if None in values else False


class TermHasKey(_Condition, frozen=True):
    """``document ? key``."""

    document: Term
    key: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        keys, key = keys_of(self.document, session), self.key(session)
        return None if keys is None or key is None else key in keys


def keys_of(document: Term, session: Session) -> list[str] | None:
    """The texts that ``document ? text`` is true for; None if it is NULL for all."""
    found = document(session)
    if found is None:
        return None
    assert isinstance(found, Document)
    match found.value:
        case dict() as members:
            return list(members)
        case list() as items:
            return [item for item in items if isinstance(item, str)]
        case str() as text:
            return [text]
    return []


class ColumnHolds(_Condition, frozen=True):
    """A boolean column standing alone."""

    column: Column

    def _bound(self, session: Session, row: Row) -> Bound:
        self.column.check(row)
        return Holds(self.column.name)


class ColumnIsNull(_Condition, frozen=True):
    """``column is null``."""

    column: Column

    def _bound(self, session: Session, row: Row) -> Bound:
        oid = row.kind(self.column)
        kind_of(oid, row.catalog)  # asks for types that are not known yet
        info = row.catalog.types.get(oid)
        if oid in LOOSE or (info is not None and info.kind not in "berm"):
            raise Unsure(f"the nulls of {self.column.name}")
        return IsNull(self.column.name)


class ColumnCompare(_Condition, frozen=True):
    """``column op value``."""

    column: Column
    op: Comparison
    value: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        column = self.column
        column.check(row)
        value = self.value(session)
        if value is None:
            return None
        literal = column.literal(value, row)
        if literal is not None:
            return Compare(column.name, self.op, literal)
        if self.op == "eq":
            return never(column.name)
        if self.op == "neq":
            return Not(never(column.name))
        raise Unsure("a bound beyond the column's range")


class ColumnDistinct(_Condition, frozen=True):
    """``column is distinct from value``."""

    column: Column
    value: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        self.column.check(row)
        value = self.value(session)
        if value is None:
            return IsDistinct(self.column.name, None)
        literal = self.column.literal(value, row)
        return True if literal is None else IsDistinct(self.column.name, literal)


class ColumnIn(_Condition, frozen=True):
    """``column = any (values)``."""

    column: Column
    values: List

    def _bound(self, session: Session, row: Row) -> Bound:
        self.column.check(row)
        values = self.values(session)
        if values is None:
            return None
        return _among(self.column, values, row) if values else False


class ColumnInKeys(_Condition, frozen=True):
    """``document ? column``."""

    column: Column
    document: Term

    def _bound(self, session: Session, row: Row) -> Bound:
        self.column.check(row)
        keys = keys_of(self.document, session)
        return None if keys is None else _among(self.column, keys, row)


def _among(column: Column, values: Iterable[Scalar], row: Row) -> Expression:
    """``column in (values)``, NULL for a NULL column."""
    literals: dict[str | None, None] = {}
    for value in values:
        literal = None if value is None else column.literal(value, row)
        if value is None or literal is not None:
            literals[literal] = None
    return InList(column.name, tuple(literals)) if literals else never(column.name)


class All(_Condition, frozen=True):
    """AND."""

    parts: tuple[Formula, ...]

    def _bound(self, session: Session, row: Row) -> Bound:
        return conjunction([part(session, row) for part in self.parts])


class Either(_Condition, frozen=True):
    """OR."""

    parts: tuple[Formula, ...]

    def _bound(self, session: Session, row: Row) -> Bound:
        return disjunction([part(session, row) for part in self.parts])


class Negation(_Condition, frozen=True):
    """NOT."""

    part: Formula

    def _bound(self, session: Session, row: Row) -> Bound:
        bound = self.part(session, row)
        if bound is None:
            return None
        return not bound if isinstance(bound, bool) else Not(bound)


class Test(_Condition, frozen=True):
    """``part is true``, ``is false``, ``is unknown`` (None)."""

    part: Formula
    value: bool | None

    def _bound(self, session: Session, row: Row) -> Bound:
        bound = self.part(session, row)
        if bound is None or isinstance(bound, bool):
            return bound is self.value
        if isinstance(bound, Holds):
            return IsTruth(bound.column, self.value)
        raise Unsure("a test of a condition on the row")


Formula: TypeAlias = (
    Constant
    | Told
    | TermIsNull
    | TermCompare
    | TermDistinct
    | TermIn
    | TermHasKey
    | ColumnHolds
    | ColumnIsNull
    | ColumnCompare
    | ColumnDistinct
    | ColumnIn
    | ColumnInKeys
    | All
    | Either
    | Negation
    | Test
)


def conjunction(parts: Collection[Bound]) -> Bound:
    """AND of bound conditions."""
    if any(part is False for part in parts):
        return False
    return _group(And, [part for part in parts if part is not True], True)


def disjunction(parts: Collection[Bound]) -> Bound:
    """OR of bound conditions."""
    if any(part is True for part in parts):
        return True
    return _group(Or, [part for part in parts if part is not False], False)


def _group(kind: type[And | Or], parts: list[Bound], empty: bool) -> Bound:
    """The parts, of which none decides, as one: constants among them are NULL."""
    conditions = [part for part in parts if part is not None and not isinstance(part, bool)]
    if not conditions:
        return None if parts else empty
    if len(conditions) < len(parts):
        conditions.append(Compare(next(_columns(conditions[0])), "eq", None))
    return conditions[0] if len(conditions) == 1 else kind(tuple(conditions))


def _columns(expression: Expression) -> Iterator[str]:
    match expression:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _columns(part)
        case Not(part):
            yield from _columns(part)
        case _:
            yield expression.column


def settle(bound: Bound) -> bool | Expression:
    """The rows for which a condition is true, where it matters no more whether it is false or NULL for the others."""
    match bound:
        case None:
            return False
        case Compare(_, _, None):
            return False
        case InList(column, values, cast) if None in values:
            known = tuple(value for value in values if value is not None)
            return InList(column, known, cast) if known else False
        case And(parts):
            return _settled(conjunction([settle(part) for part in parts]))
        case Or(parts):
            return _settled(disjunction([settle(part) for part in parts]))
    return bound


def _settled(bound: Bound) -> bool | Expression:
    assert bound is not None
    return bound
