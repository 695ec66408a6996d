"""The plan of what is captured: loaded from ``subscriptions`` once per stream, then kept by that table's own changes.

What the rows mean is in ``capture``; who applies the changes in their order is ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from psycopg2 import sql

from walstream.capture.names import parse_table_pattern
from walstream.capture.plan import Plan, SubscriptionRow, subscription_row
from walstream.errors import FilterError
from walstream.model import Change, Operation, Row, Snapshot
from walstream.shell.database.join_facts import load_snapshot
from walstream.shell.database.rows import scalar

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

TABLE = "subscriptions"

_NEEDED = ("id", "table_name", "events")
_PLANNED = frozenset({"table_name", "events", "filter", "columns"})

_PUBLICATION = """
select t.schemaname, t.tablename from pg_catalog.pg_publication_tables t where t.pubname = %s
"""


class LoadedPlan(NamedTuple):
    """``snapshot``: changes of ``subscriptions`` that it sees are in the plan already."""

    plan: Plan
    snapshot: Snapshot


def table_oid(connection: PgConnection, schema: str) -> int:
    """Of the table, 0 where there is none. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select coalesce(pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', %s::text, %s::text))::oid::bigint, 0)",
            (schema, TABLE),
        )
        return int(scalar(cursor))


def load(connection: PgConnection, schema: str, publication: str) -> LoadedPlan:
    """The plan of now. ``publication``: whose tables count as well, "" for none.

    Raises psycopg2.Error; undefined_table means that ``walstream init`` is due.
    """
    # The snapshot is older than the rows: a change between them is applied twice, which changes nothing.
    snapshot = load_snapshot(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("select id::text, table_name, events, filter, columns, notify from {}").format(
                sql.Identifier(schema, TABLE)
            )
        )
        rows = [
            subscription_row(id_, table, events, condition, columns, notify=notify)
            for id_, table, events, condition, columns, notify in cursor.fetchall()
        ]
        tables: list[tuple[str, str]] = []
        if publication:
            cursor.execute(_PUBLICATION, (publication,))
            tables = [(row[0], row[1]) for row in cursor.fetchall()]
    return LoadedPlan(Plan(rows, own_schema=schema, publication_tables=tables), snapshot)


def applied(plan: Plan, changes: Iterable[Change]) -> Plan:
    """The plan after the committed changes of ``subscriptions``. A row without the needed columns changes nothing."""
    for change in changes:
        if change.operation is Operation.TRUNCATE:
            plan = Plan((), own_schema=plan.own_schema, publication_tables=plan.publication_tables)
            continue
        known_rows = plan.rows
        before = _values(change, change.old)
        after = _values(change, change.new)
        if before is not None and "id" in before and (after is None or after.get("id") != before["id"]):
            plan = plan.without(str(before["id"]))
        if after is not None and all(name in after for name in _NEEDED):
            ids = {str(values["id"]) for values in (before, after) if values is not None and "id" in values}
            known = next((row for row in known_rows if row.id in ids), None)
            plan = plan.with_row(_completed(_row(after), change, known))
    return plan


def concerned(changes: Iterable[Change]) -> frozenset[tuple[str, str]]:
    """Tables, "*" for any, that committed changes of ``subscriptions`` are about; not those that only count.

    What a name means that cannot be read, or is not in the WAL, is anybody's guess: all tables.
    """
    tables: set[tuple[str, str]] = set()
    for change in changes:
        if change.operation is Operation.TRUNCATE:
            return frozenset({("*", "*")})
        before, after = _values(change, change.old), _values(change, change.new)
        # What is not in the new row is as it was.
        if before and after and all(before.get(name) == after.get(name, before.get(name)) for name in _PLANNED):
            continue
        for values in (before, after):
            if values is not None:
                tables |= _meant(values.get("table_name"))
    return frozenset(tables)


def _meant(name: object) -> set[tuple[str, str]]:
    try:
        pattern = parse_table_pattern(str(name))
    except FilterError:
        return {("*", "*")}
    return {(schema or "*", table or "*") for schema, table in pattern.spellings}


def _completed(row: SubscriptionRow, change: Change, known: SubscriptionRow | None) -> SubscriptionRow:
    """The row with what the WAL leaves out of an UPDATE: long values that it does not change. ``known``: as it was.

    Who takes such a filter, or such columns, for none lets out what was to be kept back.
    """
    assert change.new is not None
    missing = {column.name for column, cell in zip(change.relation.columns, change.new, strict=True) if cell is None}
    if not missing & {"filter", "columns"}:
        return row
    if known is None:
        return msgspec.structs.replace(row, problem="what it captures is not in the WAL: update its filter and columns")
    if "filter" in missing:
        row = msgspec.structs.replace(row, filter=known.filter, problem=row.problem or known.problem)
    if "columns" in missing:
        row = msgspec.structs.replace(row, columns=known.columns)
    return row


def _values(change: Change, row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        column.name: msgspec.json.decode(cell)
        for column, cell in zip(change.relation.columns, row, strict=True)
        if cell is not None
    }


def _row(values: dict[str, Any]) -> SubscriptionRow:
    return subscription_row(
        str(values["id"]),
        str(values["table_name"]),
        [str(event) for event in values["events"] or ()],
        values.get("filter"),
        values.get("columns"),
        notify=bool(values.get("notify")),
    )
