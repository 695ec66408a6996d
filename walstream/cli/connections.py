"""``walstream connections``: the WebSocket connections of all daemons.

The work is done in ``walstream.shell.commands.connections``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("connections")
@click.option("--count", "only_count", is_flag=True, help="Only how many there are.")
@click.option("--wide", is_flag=True, help="Also node, address, topics, lag and what else the daemon tells.")
@click.option("--live", is_flag=True, help="Those of the daemon that answers on --listen, which must run.")
@terminal.options(word=True)
def command(shell: Terminal, *, only_count: bool, wide: bool, live: bool) -> None:
    """List the open WebSocket connections, the newest first. Without daemons there are none."""
    from walstream.shell.commands import connections, daemon_health
    from walstream.shell.commands.own_tables import OwnTables

    node: str | None = None
    if live:
        from walstream.shell.commands.listen_live import DaemonUnreachable

        health = daemon_health.fetch(shell.config)
        if health is None:
            raise DaemonUnreachable(f"no daemon answers on {shell.config.listen}", repair="walstream serve starts one")
        node = str(health["node"])
    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        if only_count:
            count = connections.count(tables, node)
            shell.done(count, {"count": count})
            return
        rows = connections.list_connections(tables, node)
    shell.rows(rows, connections.WIDE_COLUMNS if wide else connections.COLUMNS)
