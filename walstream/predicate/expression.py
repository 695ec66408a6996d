"""The filter language's syntax tree: conditions on the columns of one row, with literals as the user wrote them.

Grammars that produce it are in ``capture.row_filter`` and ``router.client_filter``; its meaning is in ``compile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec

from walstream.errors import FilterError

Comparison: TypeAlias = Literal["eq", "neq", "lt", "lte", "gt", "gte"]

COMPARISONS: Final[tuple[Comparison, ...]] = ("eq", "neq", "lt", "lte", "gt", "gte")


class Compare(msgspec.Struct, frozen=True, tag=True):
    """``column op value``. ``value`` None is NULL: never true. ``cast``: type that the user named for the literal."""

    column: str
    op: Comparison
    value: str | None
    cast: str = ""


class InList(msgspec.Struct, frozen=True, tag=True):
    """``column in (values)``; false for every row when there are none, as ``= any('{}')`` is."""

    column: str
    values: tuple[str | None, ...]
    cast: str = ""


class IsNull(msgspec.Struct, frozen=True, tag=True):
    """``column is null``."""

    column: str


class IsTruth(msgspec.Struct, frozen=True, tag=True):
    """``column is true``, ``is false`` or (None) ``is unknown``; for boolean columns."""

    column: str
    value: bool | None


class IsDistinct(msgspec.Struct, frozen=True, tag=True):
    """``column is distinct from value``; ``value`` None is NULL."""

    column: str
    value: str | None
    cast: str = ""


class Like(msgspec.Struct, frozen=True, tag=True):
    """``column like pattern``, or ``ilike``: % any text, _ one character, backslash takes the next one as it is."""

    column: str
    pattern: str
    insensitive: bool = False


class Regex(msgspec.Struct, frozen=True, tag=True):
    """``column ~ pattern``, or ``~*`` (PostgreSQL 17, 9.7.3 POSIX Regular Expressions)."""

    column: str
    pattern: str
    insensitive: bool = False


class Holds(msgspec.Struct, frozen=True, tag=True):
    """A boolean column standing alone: its own value is the answer."""

    column: str


class And(msgspec.Struct, frozen=True, tag=True):
    """All of two or more."""

    parts: tuple[Expression, ...]


class Or(msgspec.Struct, frozen=True, tag=True):
    """Any of two or more."""

    parts: tuple[Expression, ...]


class Not(msgspec.Struct, frozen=True, tag=True):
    """The opposite; of unknown, unknown."""

    part: Expression


Leaf: TypeAlias = Compare | InList | IsNull | IsTruth | IsDistinct | Like | Regex | Holds
Expression: TypeAlias = Leaf | And | Or | Not

_Group = TypeVar("_Group", And, Or)
_encode = msgspec.json.Encoder().encode


def check_text(text: str, characters_max: int) -> None:
    """Raise FilterError for a filter too long to be one, or with characters that no database text has."""
    if len(text) > characters_max:
        raise FilterError(f"a filter of more than {characters_max} characters")
    if "\0" in text:
        raise FilterError("a filter with a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FilterError("a filter that is not Unicode text") from None


def canonical(expression: Expression) -> bytes:
    """Bytes that are equal exactly for equal trees, in any process."""
    return _encode(expression)


def leaves(expression: Expression) -> Iterator[Leaf]:
    """Every condition on a single column, from left to right."""
    match expression:
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part)
        case Not(part):
            yield from leaves(part)
        case _:
            yield expression


def columns_of(expression: Expression) -> frozenset[str]:
    """Names of the columns that decide about a row."""
    return frozenset(leaf.column for leaf in leaves(expression))


def normalise(expression: Expression) -> Expression:
    """The same condition in one form: flat, sorted, each part once, equalities of one column as one list.

    Filters that differ only in the order of their parts become equal values. The truth value of every row stays
    the same, unknown included.
    """
    match expression:
        case And(parts):
            flat = _flatten(And, parts)
            return flat[0] if len(flat) == 1 else And(flat)
        case Or(parts):
            flat = _merge_equalities(_flatten(Or, parts))
            return flat[0] if len(flat) == 1 else Or(flat)
        case Not(part):
            inner = normalise(part)
            return inner.part if isinstance(inner, Not) else Not(inner)
        case InList():
            return _normalise_list(expression)
        case _:
            return expression


def _flatten(kind: type[_Group], parts: tuple[Expression, ...]) -> tuple[Expression, ...]:
    flat: dict[bytes, Expression] = {}
    for part in parts:
        simple = normalise(part)
        for item in simple.parts if isinstance(simple, kind) else (simple,):
            flat[canonical(item)] = item
    return tuple(flat[key] for key in sorted(flat))


def _merge_equalities(parts: tuple[Expression, ...]) -> tuple[Expression, ...]:
    lists: dict[tuple[str, str], set[str | None]] = {}
    others: list[Expression] = []
    for part in parts:
        match part:
            case Compare(column, "eq", value, cast):
                lists.setdefault((column, cast), set()).add(value)
            case InList(column, values, cast):
                lists.setdefault((column, cast), set()).update(values)
            case _:
                others.append(part)
    for (column, cast), found in lists.items():
        others.append(_normalise_list(InList(column, tuple(found), cast)))
    return tuple(sorted(others, key=canonical))


def _normalise_list(expression: InList) -> Compare | InList:
    values = sorted(set(expression.values), key=lambda value: (value is None, value or ""))
    if len(values) == 1:
        return Compare(expression.column, "eq", values[0], expression.cast)
    return InList(expression.column, tuple(values), expression.cast)
