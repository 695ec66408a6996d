"""``walstream message``: what moderators do to stored messages.

The work is done in ``walstream.shell.commands.messages``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


def _ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from walstream.channel.slug import is_uuid

    for text in value:
        if not is_uuid(text):
            raise click.BadParameter(f"{text!r} is no message's id: walstream messages CHANNEL shows ids", ctx, param)
    return value


@click.group("message")
def command() -> None:
    """Hide or delete stored messages by their ids."""


@command.command("hide")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", callback=_ids)
@terminal.options()
def hide(shell: Terminal, ids: tuple[str, ...]) -> None:
    """Take messages out of history and replay; they stay in the table. Prints how many."""
    _set_hidden(shell, ids, hidden=True)


@command.command("unhide")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", callback=_ids)
@terminal.options()
def unhide(shell: Terminal, ids: tuple[str, ...]) -> None:
    """Put hidden messages back into history and replay. Prints how many."""
    _set_hidden(shell, ids, hidden=False)


@command.command("delete")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", callback=_ids)
@terminal.options()
def delete(shell: Terminal, ids: tuple[str, ...]) -> None:
    """Delete messages, all of those named or none. Prints how many."""
    from walstream.shell.commands import messages
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        count = messages.delete(OwnTables(connection, shell.config.schema), ids)
    shell.done(count, {"deleted": count})


def _set_hidden(shell: Terminal, ids: tuple[str, ...], *, hidden: bool) -> None:
    from walstream.shell.commands import messages
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        count = messages.hide(OwnTables(connection, shell.config.schema), ids, hidden=hidden)
    shell.done(count, {"hidden" if hidden else "unhidden": count})
