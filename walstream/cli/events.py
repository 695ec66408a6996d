"""``walstream events``: which events were sent, and how often.

The work is done in ``walstream.shell.commands.messages``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("events")
@click.argument("name", required=False, metavar="[CHANNEL]")
@click.argument("hours", required=False, default="24")
@terminal.options(word=True)
def command(shell: Terminal, name: str | None, hours: str) -> None:
    """Count the stored messages of the last 24 or HOURS hours by event, the most frequent first.

    Without CHANNEL those of all topics.
    """
    from walstream.shell.commands import inputs, messages
    from walstream.shell.commands.own_tables import OwnTables

    count = inputs.parse_count("HOURS", hours, 1, messages.HOURS_MAX)
    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        rows = messages.events(tables, tables.channel(name) if name else None, count)
    shell.rows(rows, messages.EVENT_COLUMNS)
