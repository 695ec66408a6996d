"""``walstream unsubscribe``: stop capturing the changes of a table.

The work is done in ``walstream.shell.commands.subscriptions``.
"""

from __future__ import annotations

import click

from walstream.errors import NotFound
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("unsubscribe")
@click.argument("name", metavar="TABLE|ID")
@click.option("--if-exists", is_flag=True, help="End with 0 where there is no such subscription.")
@terminal.options()
def command(shell: Terminal, name: str, *, if_exists: bool) -> None:
    """Stop capturing a table, named as in subscribe or by the subscription's id. Prints the id that has gone."""
    from walstream.shell.commands import subscriptions
    from walstream.shell.database import slots, tables

    settings = shell.config
    with shell.database(search_path=None) as connection:
        search_path = tables.take_search_path(connection)
        try:
            row_id, pattern = subscriptions.unsubscribe(
                connection,
                settings.schema,
                name,
                search_path=search_path,
                with_publications=slots.may_need_publications(connection, settings.slot, settings.decoder),
            )
        except NotFound:
            if not if_exists:
                raise
            shell.say(f"there is no subscription {name}")
            return
    if shell.format == "table":
        shell.result(row_id)
    else:
        shell.record({"id": row_id, "table_name": pattern})
    shell.say(f"{pattern} is no longer captured by a subscription of its own")
