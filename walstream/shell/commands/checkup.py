"""One round of all checks, in the order in which things have to be mended.

What later checks need is what earlier ones found: without the schema nothing is asked of its tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg2

from walstream.capture import quote_identifier
from walstream.config import Config
from walstream.history.budget import RATE_SECONDS_MIN, Budget, Gauge
from walstream.shell.commands import preflight, preflight_tables
from walstream.shell.database import counts, open_transactions, parked, roles, slots, tables
from walstream.shell.database.open_transactions import OpenTransaction
from walstream.shell.database.reports import Finding
from walstream.shell.database.slots import Slot
from walstream.shell.database.tables import Target

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values


def run(connection: Connection, settings: Config, table: str | None = None) -> list[Finding]:
    """Everything found, what is in order included. ``table``: judge this one instead of all that are captured.

    ``connection`` is in autocommit with the user's search_path, which is emptied. Changes nothing. Raises FilterError,
    NotFound and DatabaseRefused for a ``table`` that cannot be captured; ConfigError; psycopg2.Error.
    """
    search_path = tables.take_search_path(connection)
    target = None if table is None else tables.resolve(connection, table, search_path, ours=settings.schema)
    server = preflight.read_server(connection)
    slot, budget = _slot(connection, settings, server.max_slot_wal_bytes)
    findings = preflight.judge_server(server)
    probes = [preflight.probe_plugin(connection, plugin) for plugin in slots.PLUGINS[settings.decoder]]
    findings += preflight.judge_plugins(server, settings.decoder, slot, probes)
    findings.append(preflight.judge_slot(server, settings.decoder, settings.slot, slot, budget))
    keeper = _keeper(connection, slot)
    if keeper is not None:
        findings.append(preflight.judge_keeper(settings.slot, slot, keeper))
    if settings.publication:
        findings.append(preflight_tables.judge_publication(connection, settings.publication))
    plugin = (
        slot.plugin if slot is not None else next((probe.plugin for probe in probes if probe.state == "usable"), "")
    )
    try:
        findings += _own_tables(connection, settings.schema, plugin, target, has_slot=slot is not None)
    except psycopg2.errors.InsufficientPrivilege as error:
        cause = f"{server.user} may not read walstream's tables: {(error.diag.message_primary or str(error)).strip()}"
        repair = f"grant {roles.OWNER} to {quote_identifier(server.user)}"
        findings.append(Finding("schema_right", "error", settings.schema, cause, repair))
    return findings


def _slot(connection: Connection, settings: Config, keep_bytes: int) -> tuple[Slot | None, Budget | None]:
    """The slot and its WAL budget. An alarm is worth a second look: for how long the rest lasts takes two."""
    gauge = Gauge(settings.wal_budget_bytes)
    while True:
        slot = slots.find(connection, settings.slot)
        if slot is None:
            return None, None
        budget = gauge.measure(time.monotonic(), slot.wal_status, slot.retained_bytes, slot.safe_bytes, keep_bytes)
        if not budget.is_alarming or not budget.left_bytes or gauge.has_rate:
            return slot, budget
        time.sleep(RATE_SECONDS_MIN)


def _keeper(connection: Connection, slot: Slot | None) -> OpenTransaction | None:
    """The open transaction that the slot waits for, or keeps WAL for."""
    if slot is None:
        return open_transactions.keeper(connection, is_made=False, retained_bytes=None, lag_bytes=None)
    return open_transactions.keeper(
        connection,
        is_made=slot.confirmed_lsn is not None,
        retained_bytes=slot.retained_bytes,
        lag_bytes=slot.lag_bytes,
    )


def _own_tables(
    connection: Connection, schema: str, plugin: str, target: Target | None, *, has_slot: bool
) -> Iterator[Finding]:
    found = preflight.judge_schema(schema, preflight.read_schema(connection, schema))
    yield found
    if found.severity != "ok":
        return
    yield from preflight.judge_stuck(counts.stuck_nodes(connection, schema))
    yield preflight.judge_parked(*parked.count(connection, schema))
    if plugin == "pgoutput":
        yield preflight_tables.judge_publications(connection, schema, in_use=has_slot)
    yield preflight_tables.judge_triggers(connection, schema)
    if target is not None:
        yield from preflight_tables.judge_table(connection, schema, target)
    else:
        yield from preflight_tables.judge_rows(connection, schema)
