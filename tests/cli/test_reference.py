"""The reference pages name every key, command and code there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from walstream.cli import COMMANDS
from walstream.config import BYTE_KEYS, SECOND_KEYS, Config, parse_bytes, parse_seconds

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
            assert shown.replace("\N{EN DASH}", "") == str(defaults[key]), key


def first_words(section: str) -> set[str]:
    """What the tables of a section have in code in their first column."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return {word for line in lines for word in words(line.split(" | ")[0])}


def test_every_command_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    assert {word.split()[0] for word in first_words(page.partition("## Output")[0])} == set(COMMANDS)


def test_every_code_of_doctor_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8").partition("## doctor")[2]
    found: set[str] = set()
    for name in ("checkup", "preflight", "preflight_tables", "subscriptions"):
        source = (ROOT / "walstream" / "shell" / "commands" / f"{name}.py").read_text(encoding="utf-8")
        found |= {code for match in _CODE.findall(source) for code in match if code}
    assert found == first_words(page)
