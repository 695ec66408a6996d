"""The rows of ``realtime.subscriptions`` as a plan: which tables are captured, with which events, rows and columns.

Who reads the rows and when a plan takes effect is told in the shell; the language of filters is in ``row_filter``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from walstream.capture.names import TablePattern, is_system, parse_table_pattern
from walstream.capture.row_filter import parse_row_filter
from walstream.errors import FilterError
from walstream.model import Catalog, Change, Operation, Relation, Row
from walstream.predicate import Expression, Literals, Predicate, columns_of, compile, literals_needed  # noqa: A004

ROW_EVENTS: Final = frozenset({Operation.INSERT, Operation.UPDATE, Operation.DELETE})
ALL_EVENTS: Final = frozenset(Operation)

_EVENTS_REPAIR: Final = "choose of INSERT, UPDATE, DELETE, TRUNCATE, *"

Table: TypeAlias = tuple[str, str]
"""Schema and name."""


class SubscriptionRow(msgspec.Struct, frozen=True):
    """One row. ``filter``: None for every row; ``columns``: None for all.

    ``notify``: also mirror to NOTIFY. ``problem``: why the row captures nothing whatever its table is like, else "".
    """

    id: str
    pattern: TablePattern
    events: frozenset[Operation] = ROW_EVENTS
    filter: Expression | None = None
    columns: tuple[str, ...] | None = None
    notify: bool = False
    problem: str = ""


class Fault(msgspec.Struct, frozen=True):
    """What of a row cannot be done. ``row_id``: the row's."""

    row_id: str
    message: str


def parse_events(names: Iterable[str]) -> frozenset[Operation]:
    """Names in any case with blanks around them; ``*`` is all but TRUNCATE. Raises FilterError, for none at all too."""
    events: set[Operation] = set()
    for name in names:
        word = name.strip().upper()
        if word in ("*", "ALL"):
            events |= ROW_EVENTS
        elif word in Operation.__members__:
            events.add(Operation[word])
        else:
            raise FilterError(f"{name.strip()!r} is not an event", repair=_EVENTS_REPAIR)
    if not events:
        raise FilterError("no events", repair=_EVENTS_REPAIR)
    return frozenset(events)


def subscription_row(
    row_id: str,
    table_name: str,
    events: Iterable[str],
    filter_text: str | None = None,
    columns: Iterable[str] | None = None,
    *,
    notify: bool = False,
) -> SubscriptionRow:
    """The row as anybody may have inserted it by SQL. Never raises: what is wrong with it becomes its ``problem``."""
    pattern, chosen, condition, problem = TablePattern(None, ""), ALL_EVENTS, None, ""
    try:
        pattern = parse_table_pattern(table_name)
        chosen = parse_events(events)
        if filter_text is not None and filter_text.strip():
            condition = parse_row_filter(filter_text)
    except FilterError as error:
        problem = str(error)
    names = None if columns is None else tuple(dict.fromkeys(columns))
    return SubscriptionRow(row_id, pattern, chosen, condition, names, notify, problem)


class Admission:
    """What a row of the plan lets through of one relation's changes. Keep one per relation object: it is costly.

    ``relation``: what admitted changes have as theirs, with fewer columns where the row names some. ``is_open``: every
    INSERT, UPDATE and DELETE is admitted as it is, so that there is no need to ask. ``row_id``: the row's.
    ``pending``: changes of the transaction being read, for ``Tally``. ``looks_at``: columns that decide.
    """

    def __init__(
        self,
        relation: Relation,
        events: frozenset[Operation],
        check: Predicate | None,
        columns: frozenset[str] | None,
        row_id: str = "",
        looks_at: frozenset[str] = frozenset(),
    ) -> None:
        self.row_id = row_id
        self.looks_at = looks_at
        self.pending = 0
        self._events = events
        self._check = check
        self._kept: tuple[int, ...] | None = None
        self.relation = relation
        if columns is not None:
            wanted = columns | set(relation.primary_key)
            kept = tuple(at for at, column in enumerate(relation.columns) if column.name in wanted)
            if len(kept) < len(relation.columns):
                self._kept = kept
                self.relation = _cut(relation, kept)
        self.is_open = self._kept is None and check is None and events >= ROW_EVENTS

    def admit(self, change: Change) -> Change | None:
        """The change as captured, None if it is not. The filter sees the new row, of a DELETE the old one."""
        operation = change.operation
        if operation not in self._events:
            return None
        check = self._check
        if check is not None and operation is not Operation.TRUNCATE:
            row = change.old if operation is Operation.DELETE else change.new
            # Unknown is no match: nobody may get a row of which it is in doubt whether the filter lets it through.
            if row is None or check(row) is not True:
                return None
        kept = self._kept
        if kept is None:
            return change
        new, old = _pick(change.new, kept), _pick(change.old, kept)
        return Change(self.relation, operation, new, old, change.lsn, change.ordinal)

    def admit_row(self, row: Row) -> Row | None:
        """A row of the table as an INSERT of it would be captured, whatever the events are; None if it is not."""
        if self._check is not None and self._check(row) is not True:
            return None
        return row if self._kept is None else _pick(row, self._kept)


def _cut(relation: Relation, kept: tuple[int, ...]) -> Relation:
    return Relation(
        relation.schema,
        relation.name,
        tuple(relation.columns[at] for at in kept),
        relation.primary_key,
        relation.replica_identity,
        relation.leaf,
        relation.oid,
    )


def _pick(row: Row | None, kept: tuple[int, ...]) -> Row | None:
    return None if row is None else tuple([row[at] for at in kept])


class Plan:
    """All rows; immutable. Of several that match a table the most specific alone applies.

    That is the table's own row, then ``schema.*``, then ``*.*``, which leaves out system schemas and ``own_schema``;
    of several as specific, the one with the lowest id. ``publication_tables`` are captured whole where no row matches.
    ``problems``: rows that capture nothing, whatever the tables are like.
    """

    def __init__(
        self,
        rows: Iterable[SubscriptionRow] = (),
        *,
        own_schema: str,
        publication_tables: Iterable[Table] = (),
    ) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: row.id))
        self.own_schema = own_schema
        self.publication_tables = frozenset(publication_tables)
        self._by_table: dict[tuple[str | None, str | None], SubscriptionRow] = {}
        self._faults: dict[Table, tuple[Fault, ...]] = {}
        self.problems = tuple(self._arrange())

    def _arrange(self) -> Iterable[Fault]:
        for row in self.rows:
            if row.problem:
                yield Fault(row.id, row.problem)
            if row.pattern.is_unqualified:
                if not row.problem:
                    yield Fault(row.id, f"the table {row.pattern} is named without its schema")
                continue
            other = self._by_table.setdefault(row.pattern.spellings[0], row)
            if other is not row:
                yield Fault(row.id, f"the subscription {other.id} names {row.pattern} too, and alone applies")
        for row in self.rows:
            if not row.pattern.is_unqualified:
                for spelling in row.pattern.spellings[1:]:
                    self._by_table.setdefault(spelling, row)

    def row_for(self, schema: str, name: str) -> SubscriptionRow | None:
        """The row that applies to a table."""
        found = self._by_table.get((schema, name)) or self._by_table.get((schema, None))
        if found is None and schema != self.own_schema and not is_system(schema):
            found = self._by_table.get((None, None))
        if found is None and (schema, name) in self.publication_tables:
            found = SubscriptionRow("", TablePattern(schema, name), ALL_EVENTS)
        return found

    def wanted(self, schema: str, name: str) -> bool:
        """Whether anything of the table may be captured."""
        row = self.row_for(schema, name)
        return row is not None and not row.problem

    def literals_needed(self, relation: Relation, catalog: Catalog | None = None) -> frozenset[tuple[int, str]]:
        """What PostgreSQL has to cast before ``admission``. Raises CatalogMiss."""
        row = self.row_for(relation.schema, relation.name)
        if row is None or row.problem or row.filter is None:
            return frozenset()
        return literals_needed(row.filter, relation, catalog)

    def admission(self, relation: Relation, catalog: Catalog, literals: Literals) -> Admission | None:
        """What of the relation is captured, None for nothing. Never raises but CatalogMiss; see ``faults``."""
        row = self.row_for(relation.schema, relation.name)
        if row is None or row.problem:
            return None
        faults: list[str] = []
        check: Predicate | None = None
        admitted = True
        if row.filter is not None:
            try:
                check = compile(row.filter, relation, catalog, literals)
            except FilterError as error:
                faults.append(f"the filter does not fit {relation.schema}.{relation.name}: {error}")
                admitted = False
        columns = None if row.columns is None else frozenset(row.columns)
        missing = [] if row.columns is None else [name for name in row.columns if name not in relation.positions]
        if missing:
            faults.append(f"{relation.schema}.{relation.name} has no column {', '.join(missing)}")
        self._faults[relation.schema, relation.name] = tuple(Fault(row.id, message) for message in faults)
        looks_at = frozenset() if row.filter is None else columns_of(row.filter)
        return Admission(relation, row.events, check, columns, row.id, looks_at) if admitted else None

    def faults(self, relation: Relation) -> tuple[Fault, ...]:
        """What the latest ``admission`` of a relation of this name could not do of its row."""
        return self._faults.get((relation.schema, relation.name), ())

    @property
    def current_faults(self) -> tuple[Fault, ...]:
        """``problems``, and what the latest admission of each table could not do."""
        return (*self.problems, *(fault for faults in self._faults.values() for fault in faults))

    def with_row(self, row: SubscriptionRow) -> Plan:
        """The plan with the row added, or put in the place of the one with its id."""
        return self._with((*(other for other in self.rows if other.id != row.id), row))

    def without(self, row_id: str) -> Plan:
        """The plan less the row with that id."""
        return self._with(row for row in self.rows if row.id != row_id)

    def _with(self, rows: Iterable[SubscriptionRow]) -> Plan:
        return Plan(rows, own_schema=self.own_schema, publication_tables=self.publication_tables)
