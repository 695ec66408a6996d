"""``walstream top``: what the daemon does, line by line.

Rates are made in ``walstream.shell.commands.top``.
"""

from __future__ import annotations

import datetime as dt
import time

import click

from walstream import config
from walstream.errors import ConfigError
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

HEADER_EVERY = 20
WIDTH = 10


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A duration such as ``2`` or ``500ms``."""
    try:
        seconds = config.parse_seconds("seconds", value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    if not 0 < seconds <= 24 * 3600:
        raise click.BadParameter("from a moment to a day", ctx, param)
    return seconds


@click.command("top")
@click.argument("seconds", required=False, default="2", callback=_seconds)
@click.option("--lines", help="How many lines (default: until Ctrl+C).")
@terminal.options(word=True)
def command(shell: Terminal, seconds: float, lines: str | None) -> None:
    """Print every 2 or SECONDS seconds what the daemon that answers on --listen did since.

    Counts are per second, cpu is in cores. A daemon has to run.
    """
    from walstream.shell.commands import inputs, top

    count = None if lines is None else inputs.parse_count("--lines", lines, 1, 1_000_000)
    with shell.endless() as wait:
        before, asked = _ask(shell), time.monotonic()
        printed = 0
        while count is None or printed < count:
            wait(seconds)
            after, now = _ask(shell), time.monotonic()
            row = {"time": f"{dt.datetime.now().astimezone():%H:%M:%S}", **top.row(before, after, now - asked)}
            if printed % HEADER_EVERY == 0 if shell.format == "table" else shell.format == "csv" and printed == 0:
                shell.lines([{column: column for column in top.COLUMNS}], top.COLUMNS, width=WIDTH)
            shell.lines([row], top.COLUMNS, width=WIDTH)
            before, asked, printed = after, now, printed + 1


def _ask(shell: Terminal) -> dict[str, float]:
    from walstream.shell.commands import daemon_health

    found = daemon_health.fetch_metrics(shell.config)
    if found is None:
        from walstream.shell.commands.listen_live import DaemonUnreachable

        raise DaemonUnreachable(f"no daemon answers on {shell.config.listen}", repair="walstream serve starts one")
    return found
