"""Bindings of one table, arranged so that a row costs nothing for the bindings that it does not match.

A binding whose filter fixes a column to certain values waits in a hash table under those values; only filters without
such a condition are evaluated for every row. Which bindings there are is known to ``index``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from walstream.errors import FilterError
from walstream.model import Catalog, CatalogMiss, Change, Operation, Relation, Row
from walstream.policy import Ask, Guard, Sifted
from walstream.predicate import Compiler, Expression, Literals, Predicate, columns_of
from walstream.predicate.compile import NULL
from walstream.predicate.expression import And, Compare, InList, Or
from walstream.predicate.types import UNREADABLE, Key
from walstream.router.binding import Binding


class _Cover(NamedTuple):
    """Every row for which a filter is true has one of these values in this column.

    ``rest``: what has to be true besides; None for nothing.
    """

    column: str
    values: frozenset[Hashable]
    rest: Expression | None


class _Way(NamedTuple):
    """A cover bound to a relation."""

    position: int
    key: Key
    values: frozenset[Hashable]
    check: Predicate | None


class _Column:
    """Bindings by the value that one column must have."""

    __slots__ = ("buckets", "key", "position")

    def __init__(self, position: int, key: Key) -> None:
        self.position = position
        self.key = key
        self.buckets: dict[Hashable, dict[int, tuple[Binding, Predicate | None]]] = {}


class Lane:
    """The bindings of one table for one operation."""

    def __init__(self) -> None:
        self._plain: dict[int, Binding] = {}
        self._everyone: tuple[Binding, ...] | None = ()
        self._scanned: dict[int, tuple[Binding, Predicate]] = {}
        self._columns: dict[int, _Column] = {}
        self._placed: dict[int, tuple[int, frozenset[Hashable]]] = {}

    def put_plain(self, binding: Binding) -> None:
        """Every row matches."""
        self._plain[binding.id] = binding
        self._everyone = None

    def put(self, binding: Binding, check: Predicate, ways: Sequence[_Way]) -> None:
        """Rows match for which ``check`` is true; each of ``ways`` alone would find them."""
        if not ways:
            self._scanned[binding.id] = (binding, check)
            return
        if any(not way.values for way in ways):
            return  # no value at all satisfies a part of it
        best = min(ways, key=lambda way: (self._crowd(way), len(way.values)))
        column = self._columns.setdefault(best.position, _Column(best.position, best.key))
        for value in best.values:
            column.buckets.setdefault(value, {})[binding.id] = (binding, best.check)
        self._placed[binding.id] = (best.position, best.values)

    def _crowd(self, way: _Way) -> int:
        column = self._columns.get(way.position)
        return 0 if column is None else sum(len(column.buckets.get(value, ())) for value in way.values)

    def drop(self, binding_id: int) -> None:
        """Forget a binding; nothing happens for one that is not here."""
        if self._plain.pop(binding_id, None) is not None:
            self._everyone = None
        self._scanned.pop(binding_id, None)
        position, values = self._placed.pop(binding_id, (0, frozenset()))
        for value in values:
            buckets = self._columns[position].buckets
            del buckets[value][binding_id]
            if not buckets[value]:
                del buckets[value]
        if values and not self._columns[position].buckets:
            del self._columns[position]

    @property
    def everyone(self) -> Sequence[Binding]:
        """Bindings that every row matches; the same object until they change."""
        if self._everyone is None:
            self._everyone = tuple(self._plain.values())
        return self._everyone

    @property
    def looks_at_rows(self) -> bool:
        """Whether there are bindings that only some rows match."""
        return bool(self._columns or self._scanned)

    def match(self, row: Row | None) -> Sequence[Binding]:
        """Bindings that want the row. None: one of which the WAL says nothing, or a TRUNCATE."""
        everyone = self.everyone if self._everyone is None else self._everyone
        if row is None or not (self._columns or self._scanned):
            return everyone
        found = list(everyone)
        for column in self._columns.values():
            cell = row[column.position]
            if cell is None or cell == NULL:
                continue
            try:
                bucket = column.buckets.get(column.key(cell))
            except UNREADABLE:
                continue
            if bucket is not None:
                for binding, rest in bucket.values():
                    if rest is None or rest(row):
                        found.append(binding)
        for binding, check in self._scanned.values():
            if check(row):
                found.append(binding)
        return found


class Sight(NamedTuple):
    """What one binding with a viewer sees of a table, beside its own filter.

    ``ask``: PostgreSQL has to say which rows. ``sees``: the policies as a function of a row, where they are a filter
    that the lanes apply to the row that decides; None where every row is seen, or ``ask`` is there.
    """

    ask: Ask | None = None
    sees: Predicate | None = None


def deciding_row(change: Change) -> Row | None:
    """The row by which it is decided who gets a change: the newest that there is. None for a TRUNCATE."""
    if change.operation is Operation.DELETE:
        return change.old
    new, old = change.new, change.old
    if old is not None and new is not None and None in new:
        # Unchanged TOASTed values are in the old row, if REPLICA IDENTITY FULL puts it into the WAL.
        return tuple([before if after is None else after for after, before in zip(new, old, strict=True)])
    return new


class View:
    """All bindings that concern one state of a table's definition, compiled for it.

    ``sights``: by the ids of bindings with a viewer. ``sifted``: positions of the columns that their policies look at,
    with the number of bindings for each: a row without one of these is in doubt.
    """

    def __init__(self, relation: Relation, catalog: Catalog, *, loose_deletes: bool = False) -> None:
        self.relation = relation
        self.users = 0
        self._catalog = catalog
        self._loose_deletes = loose_deletes
        self.lanes: Final[Mapping[Operation, Lane]] = {operation: Lane() for operation in Operation}
        self.sights: dict[int, Sight] = {}
        self.sifted: dict[int, int] = {}
        self._looks: dict[int, tuple[int, ...]] = {}
        self._asking = 0

    @property
    def asks(self) -> bool:
        """Whether PostgreSQL has to say for any binding which rows it gets."""
        return self._asking > 0

    def put(self, binding: Binding, literals: Literals, guard: Guard) -> str:
        """Take the binding in. ``guard``: what its viewer may see. Returns why it cannot match any row here, or ""."""
        if guard is False:
            return ""
        operations = [operation for operation in Operation if binding.wants(operation)]
        expression = binding.expression
        if isinstance(guard, Sifted):
            literals = {**literals, **guard.literals}
            expression = guard.expression if expression is None else And((expression, guard.expression))
        compiler = Compiler(self.relation, self._catalog, literals)
        try:
            sight = self._sight(guard, compiler)
            sought = self._sought(expression, compiler)
            deletes = self._sought(binding.expression, compiler) if self._loose_deletes else sought
        except FilterError as error:
            return error.message
        except CatalogMiss as miss:
            return f"the types {sorted(miss.types)} are not known yet"
        if binding.viewer is not None:
            self._see(binding.id, sight, guard)
        for operation in operations:
            wanted = deletes if operation is Operation.DELETE else sought
            # A TRUNCATE has no row that a filter could look at.
            if wanted is None or operation is Operation.TRUNCATE:
                self.lanes[operation].put_plain(binding)
            else:
                self.lanes[operation].put(binding, *wanted)
        return ""

    def _sought(self, expression: Expression | None, compiler: Compiler) -> tuple[Predicate, list[_Way]] | None:
        if expression is None:
            return None
        ways = [self._way(cover, compiler) for cover in covers(expression, compiler)]
        return compiler.predicate(expression), ways

    def _sight(self, guard: Guard, compiler: Compiler) -> Sight:
        if isinstance(guard, Sifted):
            return Sight(sees=compiler.predicate(guard.expression))
        return Sight(ask=guard if isinstance(guard, Ask) else None)

    def _see(self, binding_id: int, sight: Sight, guard: Guard) -> None:
        self.sights[binding_id] = sight
        self._asking += sight.ask is not None
        if isinstance(guard, Sifted):
            looks = tuple(self.relation.positions[name] for name in columns_of(guard.expression))
            self._looks[binding_id] = looks
            for position in looks:
                self.sifted[position] = self.sifted.get(position, 0) + 1

    def _way(self, cover: _Cover, compiler: Compiler) -> _Way:
        check = None if cover.rest is None else compiler.predicate(cover.rest)
        return _Way(self.relation.positions[cover.column], compiler.equal_key(cover.column), cover.values, check)

    def match(self, change: Change) -> Sequence[Binding]:
        """See ``Router.match``."""
        operation = change.operation
        return self.lanes[operation].match(change.new if operation is Operation.INSERT else deciding_row(change))

    def drop(self, binding_id: int) -> None:
        """Forget a binding."""
        for lane in self.lanes.values():
            lane.drop(binding_id)
        sight = self.sights.pop(binding_id, None)
        self._asking -= sight is not None and sight.ask is not None
        for position in self._looks.pop(binding_id, ()):
            self.sifted[position] -= 1
            if not self.sifted[position]:
                del self.sifted[position]


def covers(expression: Expression, compiler: Compiler) -> Iterable[_Cover]:
    """The ways to find a normalised expression's rows by one column's value. Raises FilterError."""
    match expression:
        case Compare(column, "eq", str()) | InList(column):
            yield _Cover(column, compiler.equal_values(expression), None)
        case And(parts):
            for part in parts:
                rest = tuple(other for other in parts if other is not part)
                for cover in covers(part, compiler):
                    beside = (*rest, cover.rest) if cover.rest is not None else rest
                    yield cover._replace(rest=beside[0] if len(beside) == 1 else And(beside))
        case Or(parts):
            ways = [next(iter(covers(part, compiler)), None) for part in parts]
            known = [way for way in ways if way is not None]
            if len(known) == len(ways) and len({way.column for way in known}) == 1:
                values = frozenset[Hashable]().union(*(way.values for way in known))
                yield _Cover(known[0].column, values, expression)
