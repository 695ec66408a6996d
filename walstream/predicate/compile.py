"""Expressions become functions of a row that answer True, False or, where SQL says unknown, None.

What values of a type compare as is in ``types``; the grammars are elsewhere. A cell that the WAL does not carry makes
whatever looks at it unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from walstream.errors import FilterError
from walstream.model import Catalog, Relation, Row
from walstream.predicate import like, regex
from walstream.predicate.expression import (
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
    leaves,
)
from walstream.predicate.types import NAME, UNREADABLE, Key, Kind, base_oid, casts_itself, check_cast, kind_of

Predicate: TypeAlias = Callable[[Row], bool | None]

Literals: TypeAlias = Mapping[tuple[int, str], bytes | str]
"""What PostgreSQL made of literals: the JSON cell of each, or the text of its refusal."""

NULL: Final = b"null"

_SIGNS: Final = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_INFINITE: Final = frozenset({"infinity", "inf", "nan"})


def literals_needed(
    expression: Expression, relation: Relation, catalog: Catalog | None = None
) -> frozenset[tuple[int, str]]:
    """(type OID, text) of the literals that PostgreSQL has to cast before ``compile``.

    With a catalog the type is the one below a domain: a literal need not keep the domain's constraints. Columns that
    do not exist are passed over. Raises CatalogMiss.
    """
    needed: set[tuple[int, str]] = set()
    for leaf in leaves(expression):
        at = relation.positions.get(leaf.column)
        if at is None or not isinstance(leaf, Compare | InList | IsDistinct):
            continue
        oid = base_oid(relation.columns[at].type_oid, catalog)
        if casts_itself(oid):
            continue
        values = leaf.values if isinstance(leaf, InList) else (leaf.value,)
        needed |= {(oid, value) for value in values if value is not None}
    return frozenset(needed)


def compile(  # noqa: A001 - the room's one verb, called through its module
    expression: Expression, relation: Relation, catalog: Catalog, literals: Literals
) -> Predicate:
    """The expression over rows of ``relation``.

    Raises FilterError, naming the column, for one that does not exist, a literal that is no value of its type, or an
    operator that cannot be repeated exactly; CatalogMiss for a type that ``catalog`` does not hold yet.
    """
    return Compiler(relation, catalog, literals).predicate(expression)


class Compiler:
    """Knows one relation and the literals; makes predicates and index keys."""

    def __init__(self, relation: Relation, catalog: Catalog, literals: Literals) -> None:
        self._relation = relation
        self._catalog = catalog
        self._literals = literals

    def predicate(self, expression: Expression) -> Predicate:
        """See ``compile``."""
        match expression:
            case And(parts):
                return _all([self.predicate(part) for part in parts])
            case Or(parts):
                return _any([self.predicate(part) for part in parts])
            case Not(part):
                return _not(self.predicate(part))
            case Compare():
                return self._compare(expression)
            case InList():
                return self._in(expression)
            case IsDistinct():
                return self._distinct(expression)
            case IsNull(column):
                return _is_null(self._index(column))
            case Like(column, pattern, insensitive):
                return self._pattern(column, pattern, insensitive, "ILIKE" if insensitive else "LIKE", like.matcher)
            case Regex(column, pattern, insensitive):
                return self._pattern(column, pattern, insensitive, "~*" if insensitive else "~", regex.matcher)
            case IsTruth(column, value):
                index = self._boolean(column, "IS TRUE, FALSE or UNKNOWN")
                return _is_unknown(index) if value is None else _is_truth(index, b"true" if value else b"false")
            case Holds(column):
                return _equal(self._boolean(column, "a condition of its own"), _same, b"true")

    def equal_key(self, column: str) -> Key:
        """Key under which equal values of a column are equal. Raises FilterError."""
        return self._equality(column, "eq")[1]

    def equal_values(self, expression: Compare | InList) -> frozenset[Any]:
        """Keys of the literals of an equality or a list; NULL, which equals nothing, has none. Raises FilterError."""
        index, key, kind = self._equality(expression.column, "eq")
        self._check_cast(expression.column, expression.cast)
        values = expression.values if isinstance(expression, InList) else (expression.value,)
        return frozenset(self._value(index, kind, key, value) for value in values if value is not None)

    def _compare(self, expression: Compare) -> Predicate:
        op = expression.op
        if op in ("eq", "neq"):
            index, key, kind = self._equality(expression.column, op)
        else:
            index, key, kind = self._ordering(expression.column, op)
        self._check_cast(expression.column, expression.cast)
        if expression.value is None:
            return _unknown
        value = self._value(index, kind, key, expression.value)
        return _COMPARE[op](index, key, value)

    def _in(self, expression: InList) -> Predicate:
        index, key, _ = self._equality(expression.column, "in")
        values = self.equal_values(expression)
        return _in(index, key, values, None in expression.values) if expression.values else _false

    def _distinct(self, expression: IsDistinct) -> Predicate:
        index, key, kind = self._equality(expression.column, "is distinct from")
        self._check_cast(expression.column, expression.cast)
        if expression.value is None:
            return _not(_is_null(index))
        return _distinct(index, key, self._value(index, kind, key, expression.value))

    def _pattern(
        self, column: str, pattern: str, insensitive: bool, said: str, make: Callable[..., like.Matcher]
    ) -> Predicate:
        index = self._index(column)
        kind = self._kind(index)
        if kind.text is None:
            raise self._unsupported(column, kind, said)
        self._check_collation(column, kind)
        # The type name has the collation C by itself.
        ascii_case = kind.oid == NAME or column in self._text_facts("ascii_case")
        return _matches(index, kind.text, make(pattern, insensitive=insensitive, ascii_case=ascii_case))

    def _index(self, column: str) -> int:
        index = self._relation.positions.get(column)
        if index is None:
            raise FilterError(
                f"invalid column for filter {column}",
                repair=f"{self._relation.schema}.{self._relation.name} has no such column",
            )
        return index

    def _kind(self, index: int) -> Kind:
        return kind_of(self._relation.columns[index].type_oid, self._catalog)

    def _boolean(self, column: str, said: str) -> int:
        index = self._index(column)
        kind = self._kind(index)
        if not kind.boolean:
            raise self._unsupported(column, kind, said)
        return index

    def _equality(self, column: str, op: str) -> tuple[int, Key, Kind]:
        index = self._index(column)
        kind = self._kind(index)
        if kind.equal is None:
            raise self._unsupported(column, kind, _SIGNS.get(op, op))
        self._check_collation(column, kind)
        return index, kind.equal, kind

    def _ordering(self, column: str, op: str) -> tuple[int, Key, Kind]:
        index = self._index(column)
        kind = self._kind(index)
        if kind.order is None:
            raise self._unsupported(column, kind, _SIGNS[op])
        if kind.collated and column not in self._text_facts("ordered_text"):
            raise FilterError(
                f"column {column}: {_SIGNS[op]} is not supported for its collation, whose order only PostgreSQL knows",
                repair='give the column the collation "C", or compare with =, LIKE or a regular expression',
            )
        return index, kind.order, kind

    def _check_collation(self, column: str, kind: Kind) -> None:
        if kind.collated and column in self._text_facts("fuzzy_text"):
            raise FilterError(
                f"column {column}: its collation takes different texts as equal, only PostgreSQL can compare them",
                repair="filter by a column with a deterministic collation",
            )

    def _text_facts(self, name: str) -> frozenset[str]:
        relation = self._relation
        relations = self._catalog.relations
        info = relations.get(relation.leaf or (relation.schema, relation.name))
        info = info or relations.get((relation.schema, relation.name))
        found: frozenset[str] = getattr(info, name, frozenset())
        return found

    def _check_cast(self, column: str, cast: str) -> None:
        if cast:
            check_cast(cast, column, self._relation.columns[self._index(column)].type_oid, self._catalog)

    def _value(self, index: int, kind: Kind, key: Key, text: str) -> Any:
        """The literal's key. Raises FilterError with PostgreSQL's words for what is no value of the type."""
        column = self._relation.columns[index]
        try:
            cell = self._cell(column.type_oid, kind, text)
            if cell != NULL:
                return key(cell)
        except FilterError as error:
            raise FilterError(f"column {column.name}: {error.message}", repair=error.repair) from error
        except UNREADABLE as error:
            raise FilterError(f"column {column.name}: {text!r} cannot be compared") from error
        word = text.strip().lower()
        if kind.unbounded and word.lstrip("+-") in _INFINITE:
            # NaN orders above everything. Rows cannot hold any of the three: their JSON is null, which is unknown.
            return float("-inf") if word.startswith("-") else float("inf")
        raise FilterError(f"column {column.name}: {text!r} cannot be told from NULL in JSON")

    def _cell(self, oid: int, kind: Kind, text: str) -> bytes:
        if kind.cast is not None:
            return kind.cast(text)
        cell = self._literals.get((kind.oid, text))
        if cell is None:
            cell = self._literals.get((oid, text))
        if cell is None:
            raise FilterError(f"the literal {text!r} was not cast to {kind.name}")
        if isinstance(cell, str):
            raise FilterError(cell)
        return cell

    def _unsupported(self, column: str, kind: Kind, said: str) -> FilterError:
        return FilterError(
            f"column {column} is of type {kind.name}, for which {said} is not supported",
            repair="is null works for every type",
        )


def _same(cell: bytes) -> bytes:
    return cell


def _unknown(row: Row) -> bool | None:
    return None


def _false(row: Row) -> bool | None:
    return False


def _all(parts: list[Predicate]) -> Predicate:
    def conjunction(row: Row) -> bool | None:
        answer: bool | None = True
        for part in parts:
            value = part(row)
            if not value:
                if value is False:
                    return False
                answer = None
        return answer

    return conjunction


def _any(parts: list[Predicate]) -> Predicate:
    def disjunction(row: Row) -> bool | None:
        answer: bool | None = False
        for part in parts:
            value = part(row)
            if value:
                return True
            if value is None:
                answer = None
        return answer

    return disjunction


def _not(part: Predicate) -> Predicate:
    def negation(row: Row) -> bool | None:
        value = part(row)
        return None if value is None else not value

    return negation


def _is_null(index: int) -> Predicate:
    def is_null(row: Row) -> bool | None:
        cell = row[index]
        return None if cell is None else cell == NULL

    return is_null


def _is_truth(index: int, wanted: bytes) -> Predicate:
    def is_truth(row: Row) -> bool | None:
        cell = row[index]
        return None if cell is None else cell == wanted

    return is_truth


_is_unknown = _is_null


def _test(index: int, key: Key, answer: Callable[[Any], bool | None]) -> Predicate:
    """``answer`` of the key of a value that is there and readable; else unknown."""

    def test(row: Row) -> bool | None:
        cell = row[index]
        if cell is None or cell == NULL:
            return None
        try:
            return answer(key(cell))
        except UNREADABLE:
            return None

    return test


def _equal(index: int, key: Key, value: Any) -> Predicate:
    return _test(index, key, lambda found: bool(found == value))


_COMPARE: Final[Mapping[str, Callable[[int, Key, Any], Predicate]]] = {
    "eq": _equal,
    "neq": lambda index, key, value: _test(index, key, lambda found: bool(found != value)),
    "lt": lambda index, key, value: _test(index, key, lambda found: bool(found < value)),
    "lte": lambda index, key, value: _test(index, key, lambda found: bool(found <= value)),
    "gt": lambda index, key, value: _test(index, key, lambda found: bool(found > value)),
    "gte": lambda index, key, value: _test(index, key, lambda found: bool(found >= value)),
}


def _in(index: int, key: Key, values: frozenset[Any], with_null: bool) -> Predicate:
    missing = None if with_null else False
    return _test(index, key, lambda found: True if found in values else missing)


def _distinct(index: int, key: Key, value: Any) -> Predicate:
    differs = _COMPARE["neq"](index, key, value)

    def distinct(row: Row) -> bool | None:
        return True if row[index] == NULL else differs(row)

    return distinct


def _matches(index: int, text: Callable[[bytes], str], match: like.Matcher) -> Predicate:
    return _test(index, text, match)
