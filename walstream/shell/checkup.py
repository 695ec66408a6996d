"""One round of all checks, in the order in which things have to be mended.

What later checks need is what earlier ones found: without the schema nothing is asked of its tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walstream.config import Config
from walstream.shell import preflight, preflight_tables, slots, tables
from walstream.shell.reports import Finding

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
    slot = slots.find(connection, settings.slot)
    findings = preflight.judge_server(server)
    probes = [preflight.probe_plugin(connection, plugin) for plugin in slots.PLUGINS[settings.decoder]]
    findings += preflight.judge_plugins(server, settings.decoder, slot, probes)
    findings.append(preflight.judge_slot(server, settings.decoder, settings.slot, slot))
    schema = preflight.judge_schema(settings.schema, preflight.read_schema(connection, settings.schema))
    findings.append(schema)
    if settings.publication:
        findings.append(preflight_tables.judge_publication(connection, settings.publication))
    if schema.severity != "ok":
        return findings
    usable = [probe.plugin for probe in probes if probe.state == "usable"]
    plugin = slot.plugin if slot is not None else next(iter(usable), "")
    if plugin == "pgoutput":
        findings.append(preflight_tables.judge_publications(connection, settings.schema, in_use=slot is not None))
    findings.append(preflight_tables.judge_triggers(connection, settings.schema))
    if target is not None:
        return findings + preflight_tables.judge_table(connection, settings.schema, target)
    return findings + preflight_tables.judge_rows(connection, settings.schema)
