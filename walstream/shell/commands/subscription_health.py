"""How the subscriptions fare: each row with what it can and cannot do, as the catalogue and the daemons know it.

Rows may have been written by SQL, so anything may be in them; how the command line writes them is in ``subscriptions``.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.capture import Plan, SubscriptionRow, subscription_row
from walstream.shell.commands import subscriptions
from walstream.shell.commands.subscriptions import Wish
from walstream.shell.database import tables
from walstream.shell.database.counts import NODE_SECONDS

Verdict = Literal["ok", "warning", "error"]


class Subscription(NamedTuple):
    """One row with its health. Times are UTC; ``lag_bytes``: written but not confirmed by the slot."""

    id: str
    table_name: str
    events: list[str]
    filter: str | None
    columns: list[str] | None
    notify: bool
    created_at: dt.datetime
    updated_at: dt.datetime
    health: Verdict
    problem: str
    lag_bytes: int | None
    last_event_at: str | None


COLUMNS = (
    "id", "table_name", "events", "filter", "created_at", "updated_at",
    "columns", "notify", "health", "problem", "lag_bytes", "last_event_at",
)  # fmt: skip
"""Fields in the order in which they are shown."""

_ROWS = """
select s.id::text, s.table_name, s.events, s.filter, s.columns, s.notify, s.created_at, s.updated_at,
       (select pg_catalog.pg_wal_lsn_diff(
                   case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                        else pg_catalog.pg_current_wal_lsn() end, r.confirmed_flush_lsn)::bigint
          from pg_catalog.pg_replication_slots r where r.slot_name = %(slot)s),
       (select pg_catalog.jsonb_build_object(
                   'last_event_at', max(n.status -> 'subscriptions' -> s.id::text ->> 'last_event_at'),
                   'error', max(n.status -> 'subscriptions' -> s.id::text ->> 'error')
                       filter (where n.last_seen_at > now() - make_interval(secs => %(seconds)s)))
          from {nodes} n
         where n.status -> 'subscriptions' ? s.id::text)
  from {subscriptions} s
 order by s.created_at desc, s.table_name
"""


def load_plan(connection: Connection, schema: str) -> Plan:
    """All rows as the daemon would understand them. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("select id::text, table_name, events, filter, columns, notify from {}").format(
                sql.Identifier(schema, "subscriptions")
            )
        )
        return Plan([subscription_row(*row[:5], notify=row[5]) for row in cursor.fetchall()], own_schema=schema)


def list_subscriptions(connection: Connection, schema: str, slot: str) -> list[Subscription]:
    """All rows, newest first, with their health. ``connection`` is in autocommit. Raises psycopg2.Error."""
    plan = load_plan(connection, schema)
    by_id = {row.id: row for row in plan.rows}
    problems = {fault.row_id: fault.message for fault in plan.problems}
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(_ROWS).format(
                subscriptions=sql.Identifier(schema, "subscriptions"), nodes=sql.Identifier(schema, "nodes")
            ),
            {"slot": slot, "seconds": NODE_SECONDS},
        )
        rows = cursor.fetchall()
    listed = []
    for row_id, name, events, condition, columns, notify, created_at, updated_at, lag, report in rows:
        reported = report if isinstance(report, dict) else {}
        row = by_id.get(row_id) or subscription_row(row_id, name, events, condition, columns, notify=notify)
        health, problem = judge(connection, schema, row, name, condition, problems.get(row_id, ""))
        if reported.get("error"):
            health, problem = "error", str(reported["error"])
        listed.append(
            Subscription(
                row_id, name, events, condition, columns, notify, created_at, updated_at,
                health, problem, lag, reported.get("last_event_at"),
            )
        )  # fmt: skip
    return listed


def judge(
    connection: Connection, schema: str, row: SubscriptionRow, name: str, condition: str | None, problem: str = ""
) -> tuple[Verdict, str]:
    """Whether a row can do what it says, and what prevents it. ``problem``: the plan's. Raises psycopg2.Error."""
    if problem or row.problem:
        return "error", problem or row.problem
    wish = Wish(name, row.events, condition, row.columns)
    try:
        target = tables.resolve(connection, name, ours=schema)
        filter_columns = subscriptions.check(connection, target, wish)
    except tables.LOOKUP_ERRORS as error:
        return "error", str(error)
    told = subscriptions.warnings(connection, target, wish, filter_columns)
    return ("warning", "; ".join(warning.cause for warning in told)) if told else ("ok", "")
