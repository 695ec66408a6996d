"""``walstream channel``: registered channels and their members.

The work is done in ``walstream.shell.commands.channels``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

if TYPE_CHECKING:
    from walstream.shell.commands.channels import Role, Type, Wish
    from walstream.shell.commands.own_tables import OwnTables

TYPE = click.Choice(("public", "private", "presence"))
ROLE = click.Choice(("member", "moderator", "admin"))
PERSIST = click.option("--persist/--no-persist", default=None, help="Whether broadcasts of clients are stored.")
RETENTION = click.option("--retention-hours", help="Age at which its messages are deleted; 0: the general rule.")


@contextlib.contextmanager
def _tables(shell: Terminal) -> Iterator[OwnTables]:
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        yield OwnTables(connection, shell.config.schema)


def _wish(
    name: str | None, kind: Type | None, metadata: str | None, hours: str | None, *,
    persist: bool | None,
) -> Wish:  # fmt: skip
    from walstream.shell.commands import channels, inputs

    text = None
    if metadata is not None:
        text = inputs.read_json("METADATA", metadata, channels.METADATA_BYTES_MAX, "object")
        channels.check_schemas(text)
    return channels.Wish(
        name=name,
        type=kind,
        metadata=text,
        persist=persist,
        retention_hours=None
        if hours is None
        else inputs.parse_count("--retention-hours", hours, 0, channels.RETENTION_HOURS_MAX),
    )


@click.group("channel")
def command() -> None:
    """Make, list, change and delete channels, and say who belongs to them. A channel is named by id or slug."""


@command.command("create")
@click.argument("name")
@click.argument("kind", required=False, type=TYPE, metavar="[TYPE]")
@click.argument("metadata", required=False)
@click.option("--slug", help="The topic that clients join (default: made of NAME).")
@click.option("--update", is_flag=True, help="Where the slug is taken: set TYPE, METADATA and options of that channel.")
@PERSIST
@RETENTION
@terminal.options(word=True)
def create(
    shell: Terminal, name: str, kind: Type | None, metadata: str | None, slug: str | None, retention_hours: str | None,
    *, update: bool, persist: bool | None,
) -> None:  # fmt: skip
    """Make a channel and print its id. TYPE is public (the default), private or presence.

    METADATA is a JSON object, - for standard input or @FILE. {"max_members": N} bounds the members, {"schemas": {EVENT:
    SCHEMA}} says what payloads must be.
    """
    from walstream.shell.commands import channels

    wish = _wish(None, kind, metadata, retention_hours, persist=persist)
    with _tables(shell) as tables:
        row, is_new = channels.create(tables, name, slug, wish, update=update)
    shell.done(row["id"], {column: row[column] for column in (*channels.GET_COLUMNS, *channels.SETTING_COLUMNS)})
    if is_new:
        shell.say(f"made the {row['type']} channel {row['slug']}")
    else:
        shell.say(f"{row['slug']} was there; set: {', '.join(wish.said) or 'nothing'}")


@command.command("list")
@click.argument("kind", required=False, type=click.Choice(("all", "public", "private", "presence")), metavar="[TYPE]")
@click.option("--wide", is_flag=True, help="Also when it changed, metadata and settings.")
@terminal.options(word=True)
def list_(shell: Terminal, kind: str | None, *, wide: bool) -> None:
    """List the channels by slug: all, or those of TYPE. members and online are people."""
    from walstream.shell.commands import channels

    chosen: Type | None = None if kind == "all" else kind  # type: ignore[assignment]  # click has checked it
    with _tables(shell) as tables:
        rows = channels.list_channels(tables, chosen)
    if shell.format == "table":
        rows = [{**row, "created_at": row["created_at"].date()} for row in rows]
    more = ("updated_at", "metadata", *channels.SETTING_COLUMNS) if wide else ()
    shell.rows(rows, (*channels.LIST_COLUMNS, *more))


@command.command("get")
@click.argument("name", metavar="CHANNEL")
@click.option("--wide", is_flag=True, help="Also its settings.")
@terminal.options(word=True)
def get(shell: Terminal, name: str, *, wide: bool) -> None:
    """Show one channel."""
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        row = channels.get(tables, tables.channel(name))
    more = channels.SETTING_COLUMNS if wide else ()
    shell.record({column: row[column] for column in (*channels.GET_COLUMNS, *more)})


@command.command("update")
@click.argument("channel", metavar="CHANNEL")
@click.option("--name", help="Its name for people; the slug stays.")
@click.option("--type", "kind", type=TYPE, help="Who may join.")
@click.option("--metadata", help="A JSON object that replaces the old one; - for standard input, or @FILE.")
@PERSIST
@RETENTION
@terminal.options()
def update(
    shell: Terminal, channel: str, name: str | None, kind: Type | None, metadata: str | None,
    retention_hours: str | None, *, persist: bool | None,
) -> None:  # fmt: skip
    """Change settings of a channel, and nothing that is not named."""
    from walstream.shell.commands import channels

    wish = _wish(name, kind, metadata, retention_hours, persist=persist)
    if not wish.said:
        raise click.UsageError("nothing to change: name at least one option")
    with _tables(shell) as tables:
        row = channels.change(tables, tables.channel(channel), wish)
    shell.done(row["id"], {column: row[column] for column in (*channels.GET_COLUMNS, *channels.SETTING_COLUMNS)})
    shell.say(f"{row['slug']}; set: {', '.join(wish.said)}")


@command.command("delete")
@click.argument("name", metavar="CHANNEL")
@click.argument("really", required=False, type=click.BOOL, metavar="[true]")
@click.option("--force", is_flag=True, help="Do not ask.")
@terminal.options(word=True)
def delete(shell: Terminal, name: str, *, really: bool | None, force: bool) -> None:
    """Delete a channel with its members, message history and presences, and print its id.

    Clients that are in it are told.
    """
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        channel = tables.channel(name)
        shell.confirm(
            f"Delete the channel {channel.slug} with its members and message history?", force=force or bool(really)
        )
        row = channels.delete(tables, channel)
    shell.done(row["id"], row)
    shell.say(f"deleted {row['slug']}: {row['members']} members, {row['messages']} messages")


@command.command("join")
@click.argument("name", metavar="CHANNEL")
@click.argument("user")
@click.argument("role", required=False, type=ROLE)
@terminal.options(word=True)
def join(shell: Terminal, name: str, user: str, role: Role | None) -> None:
    """Add USER, the sub of his tokens, to a channel, as member (the default), moderator or admin.

    Prints the membership's id. For who is a member, ROLE becomes his role; when he joined stays.
    """
    from walstream.shell.commands import channels, inputs

    inputs.check_name("USER", user)
    with _tables(shell) as tables:
        row = channels.join(tables, tables.channel(name), user, role)
    is_new = row.pop("is_new")
    shell.done(row["id"], row)
    shell.say(f"{user} {'is now' if is_new else 'was there, and is'} {row['role']} of {row['channel']}")


@command.command("leave")
@click.argument("name", metavar="CHANNEL")
@click.argument("user")
@terminal.options(word=True)
def leave(shell: Terminal, name: str, user: str) -> None:
    """Remove a member. In a private channel his clients are put out. Prints the membership's id."""
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        row = channels.leave(tables, tables.channel(name), user)
    shell.done(row["id"], row)
    shell.say(f"{user} is no longer {row['role']} of {row['channel']}")


@command.command("members")
@click.argument("name", metavar="CHANNEL")
@click.option("--wide", is_flag=True, help="Also whether they are muted, and the membership's id.")
@terminal.options(word=True)
def members(shell: Terminal, name: str, *, wide: bool) -> None:
    """List the members of a channel in the order of joining. status is their presence in it."""
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        rows = channels.members(tables, tables.channel(name))
    shell.rows(rows, (*channels.MEMBER_COLUMNS, *(("muted", "id") if wide else ())))


@command.command("role")
@click.argument("name", metavar="CHANNEL")
@click.argument("user")
@click.argument("role", type=ROLE)
@terminal.options(word=True)
def role(shell: Terminal, name: str, user: str, role: Role) -> None:
    """Give a member another role. Prints the membership's id."""
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        row = channels.set_member(tables, tables.channel(name), user, role)
    shell.done(row["id"], row)
    shell.say(f"{user} is now {row['role']} of {row['channel']}")


@command.command("mute")
@click.argument("name", metavar="CHANNEL")
@click.argument("user")
@terminal.options(word=True)
def mute(shell: Terminal, name: str, user: str) -> None:
    """Let a person read a channel and send nothing. Prints the membership's id."""
    from walstream.shell.commands import channels, inputs

    inputs.check_name("USER", user)
    with _tables(shell) as tables:
        row = channels.mute(tables, tables.channel(name), user)
    row.pop("is_new", None)
    shell.done(row["id"], row)
    shell.say(f"{user} may send nothing to {row['channel']}")


@command.command("unmute")
@click.argument("name", metavar="CHANNEL")
@click.argument("user")
@terminal.options(word=True)
def unmute(shell: Terminal, name: str, user: str) -> None:
    """Let a muted member send again. Prints the membership's id."""
    from walstream.shell.commands import channels

    with _tables(shell) as tables:
        row = channels.set_member(tables, tables.channel(name), user, None, muted=False)
    shell.done(row["id"], row)
    shell.say(f"{user} may send to {row['channel']} again")
