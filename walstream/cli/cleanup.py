"""``walstream cleanup``: everything that has grown old.

The work is done in the modules of ``walstream.shell.commands`` that know the tables.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

COLUMNS = ("stale_connections", "expired_broadcasts", "stale_presence")


@click.command("cleanup")
@click.option("--hours", default="24", show_default=True, help="Delete messages that are older.")
@click.option("--timeout", default="300", show_default=True, help="Seconds of silence after which somebody is gone.")
@terminal.options(word=True)
def command(shell: Terminal, hours: str, timeout: str) -> None:
    """Mark silent connections as disconnected and silent people as offline, delete old messages.

    Prints how many of each. A channel's own retention goes before --hours. Daemons do all this by themselves, with
    their own times.
    """
    from walstream.shell.commands import connections, inputs, messages, presences
    from walstream.shell.commands.own_tables import OwnTables

    age = inputs.parse_count("--hours", hours, 0, messages.HOURS_MAX)
    silence = inputs.parse_count("--timeout", timeout, 0, connections.SECONDS_MAX)
    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        row = {
            "stale_connections": connections.clean(tables, silence),
            "expired_broadcasts": messages.clean(tables, age),
            "stale_presence": presences.clean(tables, silence),
        }
    shell.one(row, COLUMNS)
