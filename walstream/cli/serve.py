"""``walstream serve``: the daemon, until a signal ends it. What it is made of is in ``walstream.app``."""

from __future__ import annotations

import sys

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("serve")
@terminal.options()
def command(shell: Terminal) -> None:
    """Run the daemon.

    SIGTERM and Ctrl+C send the clients away and end it within WALSTREAM_DRAIN_SECONDS; a second one ends it at once.
    SIGHUP reads the configuration file again, and loses no connection.
    """
    from walstream import app

    sys.exit(app.main(shell.config, shell.load))
