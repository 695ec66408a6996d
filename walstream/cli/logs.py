"""``walstream logs``: stored broadcasts of all topics, or the daemon's own log.

The work is done in ``walstream.shell.commands.logs``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import EXIT_FAILED, Terminal


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl+C.")
@click.option("--lines", default="50", show_default=True, help="How many of those that are there, at most 1000.")
@click.option("--source", type=click.Choice(("messages", "daemon")), default="messages", show_default=True)
@click.option("--file", "path", type=click.Path(path_type=Path), help="With --source daemon: the file of its log.")
@click.option("--unit", help="With --source daemon: its service, whose journal is read (default: walstream).")
@terminal.options(word=True)
def command(
    shell: Terminal, lines: str, source: str, path: Path | None, unit: str | None, *, follow: bool
) -> None:  # fmt: skip
    """Show the last stored broadcasts of all topics, oldest first; with --json one object a line when following.

    --source daemon shows what the daemon has logged, from its service's journal or a file.
    """
    from walstream.shell.commands import inputs, messages

    count = inputs.parse_count("--lines", lines, 1, messages.LIMIT_MAX)
    if source == "messages" and (path or unit):
        raise click.UsageError("--file and --unit are for --source daemon")
    if source == "daemon":
        _daemon(shell, path, unit or "walstream", count, follow=follow)
    else:
        _messages(shell, count, follow=follow)


def _messages(shell: Terminal, count: int, *, follow: bool) -> None:
    from walstream.shell.commands import logs, messages
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        if not follow:
            shell.rows(messages.latest(tables, None, count)[::-1], messages.LOG_COLUMNS)
            return
        with shell.endless() as wait:
            for rows in logs.follow(tables, count, wait, shell.say):
                shell.lines(rows, messages.LOG_COLUMNS)


def _daemon(shell: Terminal, path: Path | None, unit: str, count: int, *, follow: bool) -> None:
    from walstream.shell.commands import logs

    with shell.endless() as wait:
        if path is not None:
            for text in logs.of_file(path, count, wait if follow else None):
                click.echo(text, nl=False)
        elif logs.of_unit(unit, count, forever=follow) != 0:
            sys.exit(EXIT_FAILED)
