"""The reference pages name every key, command and code there is, and none that there is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from walstream.cli import COMMANDS, cli
from walstream.config import BYTE_KEYS, SECOND_KEYS, Config, parse_bytes, parse_seconds
from walstream.shell.commands import channels, connections, messages, presences

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
_CODE = re.compile(r'(?:Finding|_finding)\(\s*"([a-z_]+)"|\("(wal_senders|replication_slots)",|code = "([a-z_]+)"')


def table_rows(page: str) -> list[list[str]]:
    """Cells of every row of every table of a page."""
    lines = (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    return [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines if line.startswith("| ") and "---" not in line]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_key_is_documented_with_its_default() -> None:
    documented = {words(row[0])[0]: row[1].strip(" `") for row in table_rows("config.md") if words(row[0])}
    defaults = msgspec.to_builtins(Config())
    assert set(documented) == set(defaults)
    for key, shown in documented.items():
        if key in BYTE_KEYS:
            assert parse_bytes(key, shown) == defaults[key], key
        elif key in SECOND_KEYS:
            assert parse_seconds(key, shown) == defaults[key], key
        elif key != "cluster_secret":
            default = defaults[key]
            told = str(default).lower() if isinstance(default, bool) else str(default)
            assert shown.replace("\N{EN DASH}", "") == told, key


def first_words(section: str) -> set[str]:
    """What the tables of a section have in code in their first column."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return {word for line in lines for word in words(line.split(" | ")[0])}


def test_every_command_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    assert {word.split()[0] for word in first_words(page.partition("## Output")[0])} == set(COMMANDS)


def members() -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those of groups as well."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {word}", member) for word, member in command.commands.items())
        else:
            yield name, command


def test_every_member_of_a_group_and_every_option_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    common = {"--json", "--format", "--config", *(f"--{key.replace('_', '-')}" for key in Config.__struct_fields__)}
    for words, command in members():
        *group, name = words.split()
        assert re.search(rf"`(?:{' '.join(group)} )?{name}[` ]", page), words
        if words in ("serve", "dev"):
            continue  # their options are those of the configuration, and of the page that shows how to begin
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and not common & set(option.opts):
                assert option.opts[-1] in page, (words, option.opts)


@pytest.mark.parametrize(
    "columns",
    [
        channels.LIST_COLUMNS, channels.GET_COLUMNS, channels.SETTING_COLUMNS, channels.MEMBER_COLUMNS,
        messages.COLUMNS, messages.WIDE_COLUMNS[len(messages.COLUMNS) :], messages.EVENT_COLUMNS, messages.LOG_COLUMNS,
        messages.STATISTICS_COLUMNS, presences.GET_COLUMNS, presences.ONLINE_COLUMNS, presences.STATISTICS_COLUMNS,
        connections.COLUMNS, connections.WIDE_COLUMNS[len(connections.COLUMNS) :],
    ],
)  # fmt: skip
def test_columns_are_documented_in_their_order(columns: tuple[str, ...]) -> None:
    page = " ".join((REFERENCE / "commands.md").read_text(encoding="utf-8").split())
    assert ", ".join(f"`{column}`" for column in columns) in page


def test_every_code_of_doctor_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8").partition("## doctor")[2]
    found: set[str] = set()
    for name in ("checkup", "preflight", "preflight_tables", "preflight_policies", "subscriptions"):
        source = (ROOT / "walstream" / "shell" / "commands" / f"{name}.py").read_text(encoding="utf-8")
        found |= {code for match in _CODE.findall(source) for code in match if code}
    assert found == first_words(page)
