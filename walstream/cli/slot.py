"""``walstream slot``: logical replication slots, listed, created and dropped.

The work is done in ``walstream.shell.database.slots``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

COLUMNS = (
    "name", "plugin", "database", "active", "active_pid", "restart_lsn", "confirmed_lsn",
    "lag_bytes", "retained_bytes", "wal_status", "safe_bytes", "temporary",
)  # fmt: skip


@click.group("slot")
def command() -> None:
    """List, create or drop replication slots. The daemon makes its own at the first start."""


@command.command("list")
@terminal.options(word=True)
def list_(shell: Terminal) -> None:
    """List the logical slots of the server, with what each keeps back.

    A slot that nobody reads keeps WAL until the disk is full: drop those of nodes that are gone.
    """
    from walstream.shell.database import slots

    with shell.database() as connection:
        found = slots.list_slots(connection)
    shell.rows([slot._asdict() for slot in found], COLUMNS)


@command.command("create")
@click.argument("name", required=False)
@terminal.options()
def create(shell: Terminal, name: str | None) -> None:
    """Create a slot, NAME or the configured one, with the plugin that --decoder names (auto: the first permitted).

    Waits for the transactions that are running. From then on the server keeps WAL for it.
    """
    from walstream.shell.database import slots

    chosen = name or shell.config.slot
    with shell.database() as connection:
        plugin, start = slots.create(connection, chosen, shell.config.decoder)
    if shell.format == "table":
        shell.result(chosen)
    else:
        shell.record({"name": chosen, "plugin": plugin, "lsn": str(start)})
    shell.say(f"created with {plugin}; changes from {start} on are kept for it")


@command.command("drop")
@click.argument("name")
@terminal.options()
def drop(shell: Terminal, name: str) -> None:
    """Drop a slot. What it had not delivered is lost to its node; a slot that streams is refused."""
    from walstream.shell.database import slots

    with shell.database() as connection:
        slots.drop(connection, name)
    if shell.format != "table":
        shell.record({"name": name, "dropped": True})
    shell.say(f"dropped {name}")
