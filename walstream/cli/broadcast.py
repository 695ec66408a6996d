"""``walstream broadcast``: send to a channel, its statistics, and the deletion of old messages.

The work is done in ``walstream.shell.commands.messages``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("broadcast")
@click.argument("words", nargs=-1, metavar="CHANNEL [EVENT PAYLOAD [SENDER]] | cleanup HOURS")
@click.option("--channel", help="The channel, for one whose name is cleanup; CHANNEL is then left out.")
@click.option("--ttl", help="Seconds after which the message is deleted.")
@terminal.options()
def command(shell: Terminal, words: tuple[str, ...], channel: str | None, ttl: str | None) -> None:
    r"""Send EVENT with PAYLOAD to CHANNEL, an id or slug, and print the message's id.

    PAYLOAD is JSON, - for standard input or @FILE. SENDER is stored with it. The message reaches the clients of all
    daemons, and those that LISTEN to realtime:channel:<id>.

    \b
    With CHANNEL alone its statistics are shown.
    cleanup HOURS deletes messages older than that, or than their channel says.
    """
    if channel is None and words[:1] == ("cleanup",):
        _clean_up(shell, words[1:])
        return
    given = words if channel is None else (channel, *words)
    if len(given) == 2 and given[1] in terminal.FORMATS:
        shell.format = given[1]
        given = given[:1]
    if len(given) == 1:
        _show(shell, given[0])
    elif len(given) in (3, 4):
        _send(shell, *given, ttl=ttl)
    else:
        missing = "CHANNEL" if not given else "PAYLOAD" if len(given) == 2 else ""
        raise click.UsageError(f"Missing argument '{missing}'." if missing else "Got unexpected extra arguments.")


def _send(shell: Terminal, name: str, event: str, payload: str, sender: str | None = None, *, ttl: str | None) -> None:
    from walstream.shell.commands import inputs, messages
    from walstream.shell.commands.own_tables import OwnTables

    inputs.check_name("EVENT", event)
    if sender is not None:
        inputs.check_name("SENDER", sender)
    seconds = None if ttl is None else inputs.parse_count("--ttl", ttl, 1, messages.HOURS_MAX * 3600)
    content = inputs.read_json("PAYLOAD", payload, shell.config.max_message_bytes)
    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        channel = tables.channel(name)
        row = messages.send(tables, channel, event, content, sender, ttl=seconds)
    shell.done(row["id"], {"id": row["id"], "channel": channel.slug, "seq": row["seq"], "sent_at": row["sent_at"]})
    shell.say(f"sent {event} to {channel.slug}")


def _show(shell: Terminal, name: str) -> None:
    from walstream.shell.commands import messages
    from walstream.shell.commands.own_tables import OwnTables

    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        row = messages.statistics(tables, tables.channel(name))
    shell.one(row, messages.STATISTICS_COLUMNS)


def _clean_up(shell: Terminal, words: tuple[str, ...]) -> None:
    from walstream.shell.commands import inputs, messages
    from walstream.shell.commands.own_tables import OwnTables

    if words and words[-1] in terminal.FORMATS:
        shell.format = words[-1]
        words = words[:-1]
    if len(words) != 1:
        raise click.UsageError("cleanup takes one argument, HOURS. A channel of that name is reached by --channel.")
    hours = inputs.parse_count("HOURS", words[0], 0, messages.HOURS_MAX)
    with shell.database() as connection:
        count = messages.clean(OwnTables(connection, shell.config.schema), hours)
    shell.done(count, {"expired_broadcasts": count})
    shell.say(f"deleted {count} messages older than {hours} h")
