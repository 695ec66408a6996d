"""Whether a join's ``postgres_changes`` can be had, judged from facts that are at hand; Supabase's words where not.

Pure; who loads the facts and what follows is ``joins``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, cast

import msgspec

from walstream.auth.tokens import Claims
from walstream.capture.plan import Plan
from walstream.channel.join import ChangeItem
from walstream.errors import ClientError, FilterError
from walstream.history.position import Position
from walstream.model import Catalog, Relation, RelationInfo
from walstream.policy import Viewer
from walstream.predicate import Expression, Literals, compile, literals_needed  # noqa: A004
from walstream.predicate.expression import (
    Compare,
    Holds,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Leaf,
    Like,
    Regex,
    leaves,
)
from walstream.router import ANY, Binding, Event, parse_filter
from walstream.shell.database.access import Rights, RoleFacts, TableRight

Table = tuple[str, str]

_UNABLE: Final = "Unable to subscribe to changes with given parameters. "
_NOT_ENABLED: Final = _UNABLE + "Please check Realtime is enabled for the given connect parameters: "
_EXCEPTION: Final = _UNABLE + "An exception happened so please check your connect parameters: "

_encode = msgspec.json.Encoder().encode


class ItemProblem(ClientError):
    """An item that cannot be had; ``message`` is for the client."""

    code = "item_problem"


class Wish(NamedTuple):
    """One readable item. ``expression``: its filter, None for none; ``since``: where its client was."""

    item: ChangeItem
    schema: str
    table: str
    expression: Expression | None
    since: Position | None = None

    @property
    def is_wildcard(self) -> bool:
        """Whether it may mean several tables."""
        return ANY in (self.schema, self.table)

    def means(self, table: Table) -> bool:
        """Whether the table is one that it may mean."""
        return self.schema in (ANY, table[0]) and self.table in (ANY, table[1])


class Facts(NamedTuple):
    """What the database says, in one moment. ``tables``: relations as clients see them, captured columns only."""

    roles: Mapping[str, RoleFacts]
    rights: Rights
    tables: Mapping[Table, Relation]
    literals: Literals


def read(items: Iterable[ChangeItem]) -> list[Wish]:
    """The items with their filters parsed. Raises ItemProblem."""
    wishes = []
    for item in items:
        if item.problem or item.schema is None or item.table is None:
            raise ItemProblem(item.problem or "No subscription params provided.")
        try:
            expression = parse_filter(item.filter) if item.filter else None
        except FilterError as error:
            raise ItemProblem(error.message) from error
        wishes.append(Wish(item, item.schema, item.table, expression, _position(item.since)))
    return wishes


def _position(text: str | None) -> Position | None:
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise ItemProblem(f"Error parsing `since` params: {error}") from error


def captured(relation: Relation, plan: Plan) -> Relation | None:
    """The table with the columns that the plan lets out; None for a table that is not captured."""
    if not plan.wanted(relation.schema, relation.name):
        return None
    row = plan.row_for(relation.schema, relation.name)
    if row is None or row.columns is None:
        return relation
    kept = {*row.columns, *relation.primary_key}
    return msgspec.structs.replace(relation, columns=tuple(c for c in relation.columns if c.name in kept))


def as_clients_see(relations: Mapping[Table, RelationInfo | None], plan: Plan) -> dict[Table, Relation]:
    """The captured ones among the tables; a partition is known by its root's name only."""
    found = {}
    for name, info in relations.items():
        if info is None or info.root not in (("", ""), name):
            continue
        seen = captured(as_relation(info), plan)
        if seen is not None:
            found[name] = seen
    return found


def as_relation(info: RelationInfo) -> Relation:
    """The table as the catalog has it now."""
    return Relation(info.schema, info.name, info.columns, info.primary_key, info.replica_identity, oid=info.oid)


def needed(wishes: Iterable[Wish], tables: Mapping[Table, Relation], catalog: Catalog) -> set[tuple[int, str]]:
    """Literals that PostgreSQL has to cast before ``bindings``. Raises CatalogMiss."""
    found: set[tuple[int, str]] = set()
    for wish in wishes:
        if wish.expression is not None:
            for name, relation in tables.items():
                if wish.means(name):
                    found |= literals_needed(wish.expression, relation, catalog)
    return found


def bindings(
    wishes: Iterable[Wish], claims: Claims, facts: Facts, catalog: Catalog, *, truncate: bool
) -> list[Binding]:
    """The bindings of a join's items. Raises ItemProblem, CatalogMiss.

    They have a viewer, all of them, where row-level security chooses the rows of any table that they mean.
    """
    found, is_protected = [], False
    for wish in wishes:
        for right in _checked(wish, claims.role, facts, catalog):
            is_protected |= right.protection is not None
        found.append(unchecked(wish, truncate=truncate))
    if not is_protected:
        return found
    viewer = Viewer(claims.role, claims.json)
    return [msgspec.structs.replace(binding, viewer=viewer) for binding in found]


def _checked(wish: Wish, role: str, facts: Facts, catalog: Catalog) -> list[TableRight]:
    """The role's rights to the tables that an item means. Raises ItemProblem, CatalogMiss."""
    known = facts.roles.get(role)
    if known is None:
        raise _exception(wish, f"ERROR 22023 (invalid_parameter_value) role {_encode(role).decode()} does not exist")
    if known.superuser or not known.member:
        raise _exception(wish, f"ERROR 42501 (insufficient_privilege) role {role} is not open to clients")
    tables = [relation for name, relation in facts.tables.items() if wish.means(name)]
    rights = [(relation, right) for relation in tables if (right := _right(role, relation, facts)).allowed]
    seen = [(relation, right) for relation, right in rights if not right.is_shut]
    if not tables or (wish.is_wildcard and not seen):
        raise ItemProblem(f"{_NOT_ENABLED}{_parameters(wish)}")
    if not seen:
        raise _forbidden(wish, role, tables[0], is_protected=bool(rights))
    for relation, right in seen:
        _check(wish, relation, right, facts.literals, catalog)
    return [right for _, right in seen]


def unchecked(wish: Wish, *, truncate: bool) -> Binding:
    """The binding of an item of which nobody knows yet whether it can be had."""
    event = cast("Event", wish.item.event)
    return Binding(event, wish.schema, wish.table, wish.expression, wish.item.select, truncate=truncate)


def _right(role: str, relation: Relation, facts: Facts) -> TableRight:
    return facts.rights.get((role, relation.schema, relation.name)) or TableRight(False)


def _forbidden(wish: Wish, role: str, relation: Relation, *, is_protected: bool) -> ItemProblem:
    name = f"{relation.schema}.{relation.name}"
    if is_protected:
        return _exception(
            wish,
            f"ERROR 42501 (insufficient_privilege) row-level security is enabled on {name}"
            f" and no policy lets role {role} read it",
        )
    return _exception(wish, f"ERROR 42501 (insufficient_privilege) permission denied for table {name} as {role}")


def _check(wish: Wish, relation: Relation, right: TableRight, literals: Literals, catalog: Catalog) -> None:
    """Raises ItemProblem for a filter or a selection that does not fit the table, or looks at what must not be seen."""
    seen = relation.positions.keys() if right.columns is None else relation.positions.keys() & right.columns
    if wish.expression is not None:
        for leaf in leaves(wish.expression):
            if leaf.column not in seen:
                raise _exception(wish, f"ERROR P0001 (raise_exception) invalid column for filter {leaf.column}")
        try:
            compile(wish.expression, relation, catalog, literals)
        except FilterError as error:
            raise _exception(wish, f"ERROR P0001 (raise_exception) {error.message}") from error
    for column in wish.item.select or ():
        if column not in seen:
            raise _exception(wish, f"ERROR P0001 (raise_exception) invalid column for select {column}")


def _exception(wish: Wish, text: str) -> ItemProblem:
    return ItemProblem(f"{_EXCEPTION}{_parameters(wish)}. Exception: {text}")


def _parameters(wish: Wish) -> str:
    """The item as Supabase's server prints it, which is Elixir's way."""
    filters = ", ".join(_shown(leaf) for leaf in leaves(wish.expression)) if wish.expression is not None else ""
    select = "nil" if wish.item.select is None else f"[{', '.join(_quoted(name) for name in wish.item.select)}]"
    table = f"schema: {wish.schema}, table: {wish.table}"
    return f"[event: {wish.item.event}, {table}, filters: [{filters}], select: {select}]"


def _shown(leaf: Leaf) -> str:
    parts: tuple[str, str, str | None]
    match leaf:
        case Compare(column, op, value):
            parts = (column, op, value)
        case InList(column, values):
            parts = (column, "in", f"({','.join(value or 'null' for value in values)})")
        case IsNull(column):
            parts = (column, "is", "null")
        case IsTruth(column, truth):
            parts = (column, "is", "unknown" if truth is None else str(truth).lower())
        case IsDistinct(column, value):
            parts = (column, "isdistinct", value)
        case Like(column, pattern, insensitive):
            parts = (column, "ilike" if insensitive else "like", pattern)
        case Regex(column, pattern, insensitive):
            parts = (column, "imatch" if insensitive else "match", pattern)
        case Holds(column):
            parts = (column, "is", "true")
    return "{" + ", ".join(_quoted(part or "null") for part in parts) + "}"


def _quoted(text: str) -> str:
    return _encode(text).decode()
