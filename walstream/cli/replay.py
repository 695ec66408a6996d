"""``walstream replay``: a channel's stored messages from a point in time on.

The work is done in ``walstream.shell.commands.messages``.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("replay")
@click.argument("name", metavar="CHANNEL")
@click.argument("since")
@click.option("--limit", help="At most so many; where to go on is said on stderr. Without it all are printed.")
@click.option("--wide", is_flag=True, help="Also seq, private, hidden and expires_at.")
@terminal.options(word=True)
def command(shell: Terminal, name: str, since: str, limit: str | None, *, wide: bool) -> None:
    """Print the stored messages of a channel from SINCE on, oldest first.

    SINCE is UNIX seconds, with or without a fraction, or milliseconds, which are told by their size; or ISO 8601, in
    UTC where it names no zone; or what an earlier replay with --limit has said.
    """
    from walstream.shell.commands import inputs, messages
    from walstream.shell.commands.own_tables import OwnTables, Row

    begin = inputs.read_since("SINCE", since)
    count = None if limit is None else inputs.parse_count("--limit", limit, 1, messages.LIMIT_MAX)
    if begin.notice:
        shell.say(f"notice: {begin.notice}")
    printed: list[Row] = []

    def seen(pages: Iterator[list[Row]]) -> Iterator[list[Row]]:
        for page in pages:
            printed[:] = page[-1:]
            yield page

    with shell.database() as connection:
        tables = OwnTables(connection, shell.config.schema)
        channel = tables.channel(name)
        pages = seen(messages.replay(tables, channel, begin.position, limit=count))
        shell.stream(pages, messages.WIDE_COLUMNS if wide else messages.COLUMNS)
    if count is not None and printed:
        shell.say(f"go on with {messages.place_of(printed[0])}")
