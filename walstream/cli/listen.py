"""``walstream listen``: print the changes of a table as they are committed.

Reading is done in ``walstream.shell.commands.listen``; with ``--live`` the daemon is asked, by ``listen_live`` there.
"""

from __future__ import annotations

import click

from walstream import config
from walstream.errors import ConfigError
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A duration such as ``30`` or ``5min``; 0 for no end."""
    try:
        return config.parse_seconds("seconds", value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _position(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """A change's position; "" for none."""
    from walstream.history.position import Position

    try:
        return str(Position.parse(value)) if value else ""
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command("listen")
@click.argument("table")
@click.argument("seconds", required=False, default="0", callback=_seconds)
@click.option("--live", is_flag=True, help="What clients of the running daemon get, as one of them.")
@click.option("--token", help="With --live: the token or API key to use (default: one for service_role).")
@click.option("--since", metavar="POSITION", callback=_position, help="Go on after this change. Implies --live.")
@click.option("--snapshot", is_flag=True, help="The table's rows first, then what came after. Implies --live.")
@terminal.options()
def command(
    shell: Terminal, table: str, seconds: float, token: str | None, since: str, *, live: bool, snapshot: bool
) -> None:
    """Print the changes of TABLE as they are committed: schema.table, a name on the search path, schema.* or *.*.

    Until Ctrl+C, or for SECONDS. No daemon is needed: a temporary slot is read, and the table's subscription applied;
    a table without one is shown whole.
    """
    from walstream.shell.commands import listen, listen_live, listen_output

    if shell.format == "csv":
        raise click.UsageError("changes are printed as lines or, with --json, as objects")
    live = live or snapshot or bool(since)
    if token is not None and not live:
        raise click.UsageError("--token is for --live")
    output = listen_output.Output(as_json=shell.format == "json")
    wish = listen.Wish(table, shell.config, shell.dsn, shell.say)
    if live:
        beginning = listen_live.Beginning(since, snapshot)
        listen_output.run(listen_live.Client(wish, output, token, beginning).run, seconds)
    else:
        listen_output.run(listen.Listener(wish, output).run, seconds)
