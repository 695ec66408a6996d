"""What stands between the captured tables and their subscribers: publications, rows, identities, rights.

The server and the slot are judged in ``preflight``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.capture import Plan, SubscriptionRow, print_filter, quote_identifier
from walstream.model import Operation
from walstream.shell.commands import preflight_policies, subscription_health, subscriptions
from walstream.shell.commands.subscriptions import Wish
from walstream.shell.database import access, publications, roles, tables
from walstream.shell.database.reports import Finding
from walstream.shell.database.rows import scalar
from walstream.shell.database.tables import Table, Target


def judge_rows(connection: Connection, schema: str) -> list[Finding]:
    """Every subscription, and every table that they name. ``connection`` is in autocommit. Raises psycopg2.Error."""
    plan = subscription_health.load_plan(connection, schema)
    problems = {fault.row_id: fault.message for fault in plan.problems}
    findings: list[Finding] = []
    seen: dict[int, Table] = {}
    for row in plan.rows:
        findings += judge_row(connection, schema, row, problems.get(row.id, ""))
        for table in tables.matching(connection, name_of(row), ours=schema):
            seen.setdefault(table.oid, table)
    captured = [table for table in seen.values() if plan.wanted(table.schema, table.name)]
    for table in captured:
        findings += judge_identity(connection, plan, table)
        findings += judge_mirror(plan, table)
    findings += judge_access(connection, captured)
    findings += preflight_policies.judge_policies(connection, plan, captured)
    findings += preflight_policies.judge_doubts(connection, schema)
    return findings


def judge_row(connection: Connection, schema: str, row: SubscriptionRow, problem: str = "") -> Iterator[Finding]:
    """Whether a row can do anything at all. ``problem``: the plan's."""
    if row.problem or problem:
        repair = f"walstream unsubscribe {row.id}, then subscribe the table again"
        yield Finding("subscription", "error", name_of(row) or row.id, row.problem or problem, repair)
        return
    wish = Wish(name_of(row), row.events, print_filter(row.filter) if row.filter is not None else None, row.columns)
    try:
        target = tables.resolve(connection, wish.table, ours=schema)
        subscriptions.check(connection, target, wish)
    except tables.LOOKUP_ERRORS as error:
        repair = error.repair or f"walstream unsubscribe {row.id}, or subscribe the table again"
        yield Finding("subscription", "error", wish.table, error.message, repair)
        return
    yield Finding("subscription", "ok", wish.table, told(row))


def name_of(row: SubscriptionRow) -> str:
    """The table as the row names it, with the capitals of a name without quotes; "" for a row without one."""
    pattern = row.pattern
    if not any(pattern.written):
        return str(pattern) if pattern.table or pattern.table is None else ""
    schema, table = pattern.written
    parts = [
        "" if pattern.schema is None else schema or quote_identifier(pattern.schema),
        "*" if pattern.table is None else table or quote_identifier(pattern.table),
    ]
    return ".".join(filter(None, parts))


def told(row: SubscriptionRow) -> str:
    """What a row captures, in words."""
    events = ", ".join(event.value for event in Operation if event in row.events)
    where = f" where {print_filter(row.filter)}" if row.filter is not None else ""
    columns = f", columns {', '.join(row.columns)}" if row.columns is not None else ""
    return f"captured: {events}{where}{columns}"


def judge_table(connection: Connection, schema: str, target: Target) -> list[Finding]:
    """The tables that somebody asked about. Raises psycopg2.Error."""
    plan = subscription_health.load_plan(connection, schema)
    findings: list[Finding] = []
    for table in target.tables:
        row = plan.row_for(table.schema, table.name)
        if row is None:
            repair = f"walstream subscribe {shlex.quote(table.pattern)}"
            findings.append(Finding("not_captured", "error", table.pattern, "no subscription names it", repair))
            continue
        findings += judge_row(connection, schema, row)
        if not row.problem:
            findings += judge_identity(connection, plan, table)
            findings += judge_mirror(plan, table)
    findings += judge_access(connection, target.tables)
    findings += preflight_policies.judge_policies(connection, plan, target.tables)
    findings += preflight_policies.judge_doubts(connection, schema, target.tables)
    return findings


def judge_identity(connection: Connection, plan: Plan, table: Table) -> Iterator[Finding]:
    """Whether UPDATE and DELETE arrive as subscribed."""
    row = plan.row_for(table.schema, table.name)
    if row is None:
        return
    wish = Wish(table.pattern, row.events)
    try:
        target = Target(table.pattern, (table,), False)
        if row.filter is not None:
            wish = wish._replace(filter=print_filter(row.filter))
        read = subscriptions.check(connection, target, wish)
    except tables.LOOKUP_ERRORS:
        return  # told with the row
    found = subscriptions.warnings(connection, target, wish, read)
    yield from found or [Finding("replica_identity", "ok", table.pattern, _identity(table))]


def _identity(table: Table) -> str:
    kinds = {"f": "full", "d": "the primary key", "i": "an index", "n": "nothing"}
    return kinds[table.replica_identity] if table.identity or table.kind == "p" else "none, and none is needed"


def judge_mirror(plan: Plan, table: Table) -> Iterator[Finding]:
    """Whether the mirror to NOTIFY, which knows no rights, tells what policies hide."""
    row = plan.row_for(table.schema, table.name)
    if row is not None and row.notify and table.row_security:
        cause = "row-level security is enabled, but everybody who can connect hears its changes by NOTIFY"
        repair = f"none if that is meant; else: walstream subscribe {shlex.quote(table.pattern)} without --notify"
        yield Finding("notify_mirror", "warning", table.pattern, cause, repair)


def judge_access(connection: Connection, judged: Sequence[Table]) -> Iterator[Finding]:
    """Which clients may see the changes."""
    present = access.load_roles(connection, roles.CLIENT_ROLES)
    rights = access.load_rights(connection, list(present), [(table.schema, table.name) for table in judged])
    for table in judged:
        held = {role: rights.get((role, table.schema, table.name), access.TableRight(False)) for role in present}
        allowed = [role for role in roles.CLIENT_ROLES if role in held and not held[role].is_shut]
        names = ", ".join(allowed) or "none of " + ", ".join(roles.CLIENT_ROLES)
        if table.row_security:
            yield _judge_policies(table, allowed, [role for role in allowed if held[role].protection is not None])
        elif not any(role != "service_role" for role in allowed):
            cause = f"clients may not read it: {names} gets its changes"
            schema = quote_identifier(table.schema)
            repair = (
                f"grant usage on schema {schema} to authenticated; grant select on {table.pattern} to authenticated"
            )
            yield Finding("select_right", "warning", table.pattern, cause, repair)
        else:
            yield Finding("select_right", "ok", table.pattern, f"read by {names}")


def _judge_policies(table: Table, allowed: Sequence[str], judged: Sequence[str]) -> Finding:
    """Who gets changes of a table with row-level security. ``judged``: of the allowed roles, those with policies."""
    seen = ", ".join(allowed) or "nobody"
    if judged:
        return Finding("row_security", "ok", table.pattern, f"policies choose the rows of {', '.join(judged)}")
    cause = f"row-level security is enabled and no policy lets a role read it: {seen} gets its changes"
    repair = f"create policy … on {table.pattern} for select to authenticated using (…), or none if that is meant"
    return Finding("row_security", "warning", table.pattern, cause, repair)


def judge_publications(connection: Connection, schema: str, *, in_use: bool) -> Finding:
    """Whether the publications that pgoutput reads through fit the subscriptions. Raises psycopg2.Error.

    ``in_use``: there is a slot that reads through them; before, the daemon's first start makes them.
    """
    due = publications.check_publications(connection, schema)
    subject = " and ".join(publications.NAMES)
    if not due:
        return Finding("publications", "ok", subject, "as the subscriptions want them")
    shown = "; ".join(due[:5]) + ("; …" if len(due) > 5 else "")
    cause = f"{len(due)} statements behind the subscriptions"
    return Finding("publications", "error" if in_use else "warning", subject, cause, shown)


def judge_publication(connection: Connection, name: str) -> Finding:
    """Whether the publication of the configuration, whose tables are captured too, is there."""
    with connection.cursor() as cursor:
        cursor.execute("select exists (select from pg_catalog.pg_publication where pubname = %s)", (name,))
        there = bool(scalar(cursor))
    if there:
        return Finding("publication", "ok", name, "its tables are captured too")
    repair = f"create publication {quote_identifier(name)}, or take it out of WALSTREAM_PUBLICATION"
    return Finding("publication", "error", name, "there is no such publication", repair)


def judge_triggers(connection: Connection, schema: str) -> Finding:
    """That no statement of a user runs code of walstream's schema: changes come from the WAL alone."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_catalog.format('drop trigger %%I on %%I.%%I', t.tgname, n.nspname, c.relname)"
            "  from pg_catalog.pg_trigger t"
            "  join pg_catalog.pg_proc p on p.oid = t.tgfoid"
            "  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace and pn.nspname = %(schema)s"
            "  join pg_catalog.pg_class c on c.oid = t.tgrelid"
            "  join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname <> %(schema)s"
            " where not t.tgisinternal order by 1",
            {"schema": schema},
        )
        drops = [statement for (statement,) in cursor.fetchall()]
    if not drops:
        return Finding("triggers", "ok", "tables", "none of walstream's on any table")
    cause = f"{len(drops)} triggers of tables call functions of the schema {schema}: they are not walstream's"
    return Finding("triggers", "warning", "tables", cause, "; ".join(drops))
