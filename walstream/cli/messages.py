"""``walstream messages``: the newest stored messages of a channel.

The work is done in ``walstream.shell.commands.messages``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("messages")
@click.argument("name", metavar="CHANNEL")
@click.argument("limit", required=False, default="50")
@click.option("--hidden", is_flag=True, help="Hidden ones as well.")
@click.option("--wide", is_flag=True, help="Also seq, private, hidden and expires_at.")
@terminal.options(word=True)
def command(shell: Terminal, name: str, limit: str, *, hidden: bool, wide: bool) -> None:
    """List the stored messages of a channel, newest first: 50, or LIMIT, at most 1000.

    Bytes are shown as a data: URL.
    """
    from walstream.shell.commands import inputs, messages
    from walstream.shell.commands.own_tables import OwnTables

    count = inputs.parse_count("LIMIT", limit, 1, messages.LIMIT_MAX)
    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        rows = messages.latest(tables, tables.channel(name), count, with_hidden=hidden)
    shell.rows(rows, messages.WIDE_COLUMNS if wide else messages.COLUMNS)
