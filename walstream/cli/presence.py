"""``walstream presence``: who is online, away or offline, and where.

The work is done in ``walstream.shell.commands.presences``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from walstream.errors import EnvironmentFailure
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

if TYPE_CHECKING:
    from walstream.shell.commands.own_tables import OwnTables
    from walstream.shell.commands.presences import Place, Status

STATUS = click.Choice(("online", "away", "offline"))


@contextlib.contextmanager
def _tables(shell: Terminal) -> Iterator[OwnTables]:
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        yield OwnTables(connection, shell.config.schema)


def _place(tables: OwnTables, name: str | None) -> Place | None:
    from walstream.shell.commands import presences

    return presences.find_place(tables, name) if name else None


@click.group("presence")
def command() -> None:
    """Say and see who is where. A channel is named by id or slug; an open room by its topic once somebody was there."""


@command.command("track")
@click.argument("user")
@click.argument("name", required=False, metavar="[CHANNEL]")
@click.argument("status", required=False, type=STATUS, default="online")
@click.argument("metadata", required=False)
@click.option("--merge", is_flag=True, help="Add the members of METADATA to those that are there.")
@terminal.options(word=True)
def track(shell: Terminal, user: str, name: str | None, status: Status, metadata: str | None, *, merge: bool) -> None:
    """Set USER online (the default), away or offline in CHANNEL, and print the id of the presence.

    Without CHANNEL, or with an empty one, he is nowhere in particular. METADATA is a JSON object, - for standard input
    or @FILE; it replaces what was there, and without it that stays. Clients in the channel are told.
    """
    from walstream.shell.commands import inputs, presences

    inputs.check_name("USER", user)
    limit = shell.config.max_message_bytes
    content = None if metadata is None else inputs.read_json("METADATA", metadata, limit, "object")
    with _tables(shell) as tables:
        place = _place(tables, name) or presences.Place(None)
        row = presences.track(tables, user, place, status, content, merge=merge)
    shell.done(row["id"], row)
    shell.say(f"{user} is {status}" + (f" in {place.topic}" if place.topic else ""))


@command.command("get")
@click.argument("user")
@click.argument("name", required=False, metavar="[CHANNEL]")
@terminal.options(word=True)
def get(shell: Terminal, user: str, name: str | None) -> None:
    """Show the presence of USER in CHANNEL; or first altogether, as a row without channel, and then in each channel."""
    from walstream.shell.commands import presences

    with _tables(shell) as tables:
        rows = presences.of_user(tables, user, _place(tables, name))
    shell.rows(rows, presences.GET_COLUMNS)


@command.command("online")
@click.argument("name", required=False, metavar="[CHANNEL]")
@terminal.options(word=True)
def online(shell: Terminal, name: str | None) -> None:
    """List who is online or away in CHANNEL, or anywhere, who was seen last first."""
    from walstream.shell.commands import presences

    with _tables(shell) as tables:
        rows = presences.online(tables, _place(tables, name))
    shell.rows(rows, presences.ONLINE_COLUMNS)


@command.command("count")
@click.argument("name", required=False, metavar="[CHANNEL]")
@terminal.options(word=True)
def count(shell: Terminal, name: str | None) -> None:
    """Print how many people are online or away in CHANNEL, or anywhere. Each counts once."""
    from walstream.shell.commands import presences

    with _tables(shell) as tables:
        found = presences.count(tables, _place(tables, name))
    shell.done(found, {"count": found})


@command.command("offline")
@click.argument("user")
@click.argument("name", required=False, metavar="[CHANNEL]")
@terminal.options(word=True)
def offline(shell: Terminal, user: str, name: str | None) -> None:
    """Set USER offline in CHANNEL, or in all, and print in how many he was. Clients there are told.

    Who has a socket there stays until it closes; the command ends with 1 if that is all there is of him.
    """
    from walstream.shell.commands import presences

    with _tables(shell) as tables:
        changed, nodes = presences.set_offline(tables, user, _place(tables, name))
    held = f"{user} still has sockets at {', '.join(nodes)}" if nodes else ""
    if not changed:
        raise EnvironmentFailure(
            held, repair="he is offline when they close; remove a member with walstream channel leave"
        )
    shell.done(changed, {"user_id": user, "offline": changed, "nodes": nodes})
    if held:
        shell.say(f"notice: {held}")


@command.command("stats")
@terminal.options(word=True)
def stats(shell: Terminal) -> None:
    """Count people by the best of what they are anywhere: online before away before offline."""
    from walstream.shell.commands import presences
    from walstream.shell.database import counts

    with shell.database() as connection:
        row = counts.presence(connection, shell.config.schema)
    shell.one(row, presences.STATISTICS_COLUMNS)


@command.command("cleanup")
@click.argument("seconds", required=False, default="300")
@terminal.options(word=True)
def cleanup(shell: Terminal, seconds: str) -> None:
    """Set everybody offline who was not seen for 300 or SECONDS seconds, as daemons do it by themselves.

    Prints how many.
    """
    from walstream.shell.commands import inputs, presences

    silent = inputs.parse_count("SECONDS", seconds, 0, presences.SECONDS_MAX)
    with _tables(shell) as tables:
        changed = presences.clean(tables, silent)
    shell.done(changed, {"stale_presence": changed})
