"""The command line: names of all commands, loaded when they are called, and what their errors end with.

What a command does is in the file of its name; what they share is in ``walstream.shell.commands.terminal``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from walstream import __version__
from walstream.errors import WalstreamError

EXIT_INTERRUPTED = 130
"""What shells report of a program that Ctrl+C has ended."""


class Entry(NamedTuple):
    """A command: the module of this package that holds it as ``command``, and its line in the help."""

    module: str
    summary: str


COMMANDS: Mapping[str, Entry] = {
    "init": Entry("init", "Make walstream's roles, tables and functions in the database."),
    "serve": Entry("serve", "Run the daemon."),
    "dev": Entry("dev", "Run a private PostgreSQL and the daemon, to try things."),
    "status": Entry("status", "Show what is there and what runs."),
    "stats": Entry("stats", "Show statistics."),
    "doctor": Entry("doctor", "Check the database, and print the repair of what is wrong."),
    "config": Entry("config", "Show or check the configuration."),
    "token": Entry("token", "Make a token that clients can use."),
    "slot": Entry("slot", "List, create or drop replication slots."),
    "subscribe": Entry("subscribe", "Capture the changes of a table."),
    "unsubscribe": Entry("unsubscribe", "Stop capturing the changes of a table."),
    "subscriptions": Entry("subscriptions", "List the captured tables and their health."),
    "listen": Entry("listen", "Print the changes of a table as they are committed."),
    "channel": Entry("channel", "Make, change and delete channels, and say who belongs to them."),
    "broadcast": Entry("broadcast", "Send a message to a channel, or show its statistics."),
    "message": Entry("message", "Hide or delete stored messages."),
    "messages": Entry("messages", "List the newest messages of a channel."),
    "replay": Entry("replay", "Print the messages of a channel from a point in time on."),
    "events": Entry("events", "Count the messages of a channel by event."),
    "presence": Entry("presence", "Say and see who is online, away or offline."),
    "connections": Entry("connections", "List the open WebSocket connections."),
    "top": Entry("top", "Watch what the daemon does, a line every two seconds."),
    "logs": Entry("logs", "Show the last messages of all topics, or the daemon's log."),
    "cleanup": Entry("cleanup", "Delete old messages, and mark who has gone silent."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called, so that help and completion stay quick."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read ``help subscribe`` as ``subscribe --help``."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None for a name that is none."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found = importlib.import_module(f"{__name__}.{entry.module}").command
        if not isinstance(found, click.Command):
            raise TypeError(f"walstream.cli.{entry.module} has no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of ours is printed and becomes the exit code."""
        try:
            return super().invoke(ctx)
        except WalstreamError as error:
            from walstream.shell.commands import terminal

            terminal.current(ctx).error(error)
            ctx.exit(terminal.exit_code(error))
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="walstream")
def cli() -> None:
    """Changes, broadcasts and presence from PostgreSQL to WebSocket clients."""


@cli.result_callback()
def _result(*_: object) -> None:
    """Commands end with an exit code, never with a value that click would print."""


def main() -> None:
    """Entry point of the program ``walstream``."""
    cli(prog_name="walstream")
