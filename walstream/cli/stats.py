"""``walstream stats``: numbers about subscriptions, presence, broadcasts and connections.

The statements are in ``walstream.shell.database.counts``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("stats")
@terminal.options(word=True)
def command(shell: Terminal) -> None:
    """Show statistics: what is stored, who is there, and how much was sent.

    In JSON an object with a block for each of status, subscriptions, presence, broadcast, channels and connections.
    """
    from walstream.shell.database import counts

    with shell.database() as connection:
        blocks = counts.statistics(connection, shell.config.schema)
    if shell.format == "json":
        shell.record(blocks)
        return
    rows = [
        {"block": block, "name": name, "value": value}
        for block, found in blocks.items()
        for name, value in found.items()
    ]
    shell.rows(rows, ("block", "name", "value"))
