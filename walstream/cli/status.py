"""``walstream status``: what is in the database, how the slot is, and whether a daemon runs.

Counts are in ``walstream.shell.database.counts``, the slot in ``slots`` beside it; the daemon is asked over HTTP.
"""

from __future__ import annotations

import click

from walstream.config import redact_dsn
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("status")
@terminal.options(word=True)
def command(shell: Terminal) -> None:
    """Show what is there and what runs: counts, the slot with its lag, nodes, the daemon that answers on --listen."""
    from walstream.shell.commands import daemon_health, preflight
    from walstream.shell.database import counts, parked, slots

    settings = shell.config
    with shell.database() as connection:
        state = preflight.read_schema(connection, settings.schema)
        present = state.condition in ("current", "pending")
        overview = counts.overview(connection, settings.schema) if present else dict.fromkeys(counts.OVERVIEW_COLUMNS)
        nodes = counts.live_nodes(connection, settings.schema) if present else []
        parked_rows = parked.count(connection, settings.schema)[0] if state.condition == "current" else None
        slot = slots.find(connection, settings.slot)
        server = preflight.read_server(connection)
    health = daemon_health.fetch(settings)
    daemon = health or {}
    budget = (daemon.get("slot") or {}).get("budget") or {}
    shell.record(
        {
            **overview,
            "database": server.database,
            "database_url": redact_dsn(settings.database_url),
            "server_version": f"{server.version // 10000}.{server.version % 10000}",
            "schema": settings.schema,
            "schema_state": state.condition,
            "slot": settings.slot,
            "slot_exists": slot is not None,
            "plugin": slot.plugin if slot else None,
            "slot_active": slot.active if slot else None,
            "wal_status": slot.wal_status if slot else None,
            "lag_bytes": slot.lag_bytes if slot else None,
            "retained_bytes": slot.retained_bytes if slot else None,
            "safe_bytes": slot.safe_bytes if slot else None,
            "failover": slot.failover if slot else None,
            "slot_life": (daemon.get("slot_life") or {}).get("state"),
            "budget_state": budget.get("state"),
            "budget_left_bytes": budget.get("left_bytes"),
            "budget_left_seconds": budget.get("left_seconds"),
            "parked": parked_rows,
            "daemon": daemon.get("status", "not running"),
            "daemon_reasons": daemon.get("reasons", []),
            "nodes": nodes,
            "listen": settings.listen,
            "node": daemon.get("node"),
            "version": daemon.get("version"),
            "clients": daemon.get("clients"),
            "uptime": daemon.get("uptime"),
        }
    )
    if not present:
        shell.say(f"the schema {settings.schema} is {state.condition}\nrepair: walstream doctor tells what to do")
    if health is None:
        shell.say(f"no daemon answers on {settings.listen}: walstream serve starts one")
