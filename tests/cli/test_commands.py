"""What holds for every command: help, formats, usage errors, and an end by Ctrl+C that says nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from walstream.cli import COMMANDS, EXIT_INTERRUPTED, cli
from walstream.errors import NotFound
from walstream.shell.commands.terminal import FORMATS

OURS = (
    "init",
    "status",
    "stats",
    "doctor",
    "config",
    "token",
    "slot",
    "subscribe",
    "unsubscribe",
    "subscriptions",
    "listen",
    "channel",
    "broadcast",
    "message",
    "messages",
    "replay",
    "events",
    "presence",
    "connections",
    "top",
    "logs",
    "cleanup",
)


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from leaves(member, (*path, name))
    else:
        yield path, command


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(cli)
    found = []
    for name in OURS:
        command = cli.get_command(context, name)
        assert command is not None
        found += list(leaves(command, (name,)))
    return found


ALL = commands()
PATHS = [path for path, _ in ALL]


def test_the_help_lists_every_command() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    assert set(OURS) <= set(COMMANDS)
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    for flag in ("-h", "--help"):
        done = CliRunner().invoke(cli, [*path, flag])
        assert done.exit_code == 0
        assert done.stdout.startswith(f"Usage: cli {' '.join(path)} ")
        assert "--json" in done.stdout


@pytest.mark.parametrize("path", [(), *PATHS], ids=" ".join)
def test_help_is_a_word_too(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["help", *path])
    assert (done.exit_code, done.stdout) == (0, CliRunner().invoke(cli, [*path, "--help"]).stdout)


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path in PATHS])
def test_every_command_takes_a_format_and_the_configuration(path: tuple[str, ...], command: click.Command) -> None:
    options = {name: option for option in command.params for name in option.opts}
    assert {"--json", "--format", "--config", "--database-url", "--schema"} <= set(options)
    choice = options["--format"].type
    assert isinstance(choice, click.Choice)
    assert tuple(choice.choices) == FORMATS
    assert command.help


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_wrong_arguments_are_usage_errors(path: tuple[str, ...]) -> None:
    for surplus in (["--nonsense"], ["--format", "xml"], ["a", "b", "c", "d", "e", "f"]):
        done = CliRunner().invoke(cli, [*path, *surplus])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "Usage: " in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        [],
        ["slot"],
        ["config"],
        ["slot", "nosuch"],
        ["subscribe"],
        ["unsubscribe"],
        ["channel"],
        ["channel", "nosuch"],
        ["channel", "join", "a"],
        ["broadcast"],
        ["messages"],
        ["replay", "a"],
        ["presence"],
        ["presence", "track"],
        ["message", "hide"],
        ["message", "hide", "1"],
        ["logs", "--unit", "x"],
    ],
)
def test_what_is_no_command_or_half_of_one_is_answered_with_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.output


WORDS = {"since": "0", "ids": "6b1f8f7a-0000-4000-8000-000000000000", "role": "admin", "words": "general"}
FLAGS: dict[tuple[str, ...], list[str]] = {("channel", "update"): ["--name", "x"]}


def fewest(path: tuple[str, ...], command: click.Command) -> list[str]:
    """The arguments without which a command does not begin."""
    places = [place for place in command.params if isinstance(place, click.Argument)]
    needed = [place for place in places if place.required or place.name == "words"]
    return [WORDS.get(str(place.name), "public.users") for place in needed] + FLAGS.get(path, [])


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path in PATHS])
def test_without_a_database_the_key_is_named(path: tuple[str, ...], command: click.Command) -> None:
    if path[0] in ("token", "config", "top"):
        return
    done = CliRunner().invoke(cli, [*path, *fewest(path, command)])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "error: database_url: no database is configured [config_error]",
        "repair: set WALSTREAM_DATABASE_URL",
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_a_module_of_its_own(name: str) -> None:
    module = COMMANDS[name].module
    if name in OURS:
        assert importlib.util.find_spec(f"walstream.cli.{module}") is not None
    assert COMMANDS[name].summary.endswith(".")


def test_an_argument_in_another_encoding_is_a_usage_error() -> None:
    done = CliRunner().invoke(cli, ["subscribe", "caf\udce9"], env={"WALSTREAM_DATABASE_URL": "host=/nowhere"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'caf\\udce9'" in done.stderr


def ending(error: BaseException) -> tuple[int, str]:
    @click.command("end")
    def end() -> None:
        raise error

    class One(type(cli)):  # type: ignore[misc]  # the group's class, with one command more
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return end

    done = CliRunner().invoke(One("walstream"), ["end"])
    return done.exit_code, done.output


def test_ctrl_c_ends_a_command_quietly() -> None:
    assert ending(KeyboardInterrupt()) == (EXIT_INTERRUPTED, "")


def test_an_error_of_ours_becomes_text_and_an_exit_code() -> None:
    assert ending(NotFound("nothing there", repair="look elsewhere")) == (
        3,
        "error: nothing there [not_found]\nrepair: look elsewhere\n",
    )
