"""``walstream subscriptions``: what is captured, and whether it works.

The judgement is in ``walstream.shell.commands.subscription_health``.
"""

from __future__ import annotations

import sys

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import EXIT_FAILED, Terminal


@click.command("subscriptions")
@click.option("--check", is_flag=True, help="End with 1 where a subscription is in error: for alerts.")
@terminal.options(word=True)
def command(shell: Terminal, *, check: bool) -> None:
    """List the subscriptions, newest first, with their health.

    error: it captures nothing. warning: something of it does not arrive; the problem says what.
    """
    from walstream.shell.commands import subscription_health

    with shell.database() as connection:
        listed = subscription_health.list_subscriptions(connection, shell.config.schema, shell.config.slot)
    shell.rows([row._asdict() for row in listed], subscription_health.COLUMNS)
    broken = [row.table_name for row in listed if row.health == "error"]
    if check and broken:
        shell.say(f"in error: {', '.join(broken)}")
        sys.exit(EXIT_FAILED)
