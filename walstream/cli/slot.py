"""``walstream slot``: logical replication slots, listed, created and dropped.

The work is done in ``walstream.shell.database.slots``.
"""

from __future__ import annotations

import click

from walstream.errors import NotFound
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

COLUMNS = (
    "name", "plugin", "database", "active", "active_pid", "restart_lsn", "confirmed_lsn",
    "lag_bytes", "retained_bytes", "wal_status", "safe_bytes", "temporary", "failover", "invalidation",
)  # fmt: skip

WORTH_A_NOTE_SECONDS = 1


@click.group("slot")
def command() -> None:
    """List, create or drop replication slots, and list what could not be read from them.

    The daemon makes its own slot at the first start.
    """


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
    from walstream.shell.database import open_transactions, slots

    chosen = name or shell.config.slot
    with shell.database() as connection:
        oldest = open_transactions.oldest(connection, seconds=WORTH_A_NOTE_SECONDS)
        if oldest is not None:
            shell.say(f"note: waiting for {oldest}; {oldest.repair}")
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


@command.command("parked")
@click.option("--clear", "number", type=int, help="Delete the row with this id.")
@click.option("--clear-all", is_flag=True, help="Delete all rows.")
@terminal.options(word=True)
def parked_(shell: Terminal, number: int | None, *, clear_all: bool) -> None:
    """List what daemons could not read of the WAL and left out (WALSTREAM_POISON=skip), oldest first, or delete of it.

    Read the tables that are named again: their changes are missing in what clients got.
    """
    from walstream.shell.database import parked

    with shell.database() as connection:
        if number is None and not clear_all:
            shell.rows(parked.list_parked(connection, shell.config.schema), parked.COLUMNS)
            return
        deleted = parked.clear(connection, shell.config.schema, None if clear_all else number)
    if not deleted and not clear_all:
        raise NotFound(f"nothing is parked under {number}", repair="walstream slot parked shows what is")
    shell.done(deleted, {"deleted": deleted})
    shell.say(f"deleted {deleted}")
