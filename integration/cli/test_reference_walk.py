"""The whole command reference of the documentation of `nself realtime`, through the alias, against a real database.

One shell runs all lines, as somebody would who pastes them; each line's columns are compared with the documented ones.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from integration.cli.conftest import Walstream
from integration.fixtures.postgres import ROOT, TestDatabase
from walstream.cli import COMMANDS

CHANNEL = "id slug name type members online created_at"
ONE_CHANNEL = "id slug name type metadata total_members online_members created_at updated_at"
MESSAGES = "id event_type payload sender_id sent_at"
BROADCASTS = "total_messages messages_last_hour messages_last_day unique_event_types unique_senders"
MEMBERS = "user_id role status joined_at last_seen_at"
PRESENCE = "user_id channel status metadata last_seen_at seconds_since_seen"
ONLINE = "user_id channel status metadata last_seen_at seconds_ago"
CONNECTIONS = "user_id connection_id status connected_at seconds_since_seen"
CLEANUP = "stale_connections expired_broadcasts stale_presence"
ID = "[id]"
NUMBER = "[number]"
SILENT = ""

# A documented line → its columns: of a table its first line, of a record or in JSON its keys; or what else is printed.
LINES: list[tuple[str, str]] = [
    ("init", "[anything]"),
    ("status", "+ channels messages_24h online_users table_subscriptions"),
    ("stats", "block name value"),
    ("subscribe public.users", ID),
    ("subscribe public.posts INSERT,UPDATE", ID),
    ("""subscribe public.comments INSERT,UPDATE "post_id = '123'" """, ID),
    ("listen public.users 0.1", SILENT),
    ("subscriptions", "+ id table_name events filter created_at updated_at"),
    ("unsubscribe public.users", ID),
    ("""unsubscribe "$(nself realtime subscribe public.users)" """, ID),
    ('channel create "general" public', ID),
    ('channel create "support" private', ID),
    ('channel create "lobby" presence', ID),
    ('channel create "team-alpha" private', ID),
    ('channel create "game-lobby" presence', ID),
    ("""channel create "limited" private '{"max_members": 10}'""", ID),
    ("channel create plain", ID),
    ("channel list", CHANNEL),
    ("channel list public", CHANNEL),
    ("channel list private", CHANNEL),
    ("channel list presence", CHANNEL),
    ("channel list --format json", CHANNEL),
    ("channel get general", ONE_CHANNEL),
    ('channel get "$(nself realtime channel create by-id)"', ONE_CHANNEL),
    ("channel delete limited true", ID),
    ("channel join general user-123", ID),
    ("channel join support user-456 moderator", ID),
    ("channel join team-alpha user-789 admin", ID),
    ("channel members general", MEMBERS),
    ("channel leave general user-123", ID),
    ("""broadcast general user.joined '{"user_id": "123", "name": "John Doe"}'""", ID),
    ("""broadcast general message.sent '{"text": "Hello"}' user-123""", ID),
    (
        """broadcast game-lobby player.moved '{
  "player_id": "player-1",
  "position": {"x": 100, "y": 200},
  "timestamp": 1643723456
}'""",
        ID,
    ),
    ("messages general", MESSAGES),
    ("messages general 100", MESSAGES),
    ("messages general 50 json", MESSAGES),
    ("replay general 1643723400", MESSAGES),
    ('replay general "2026-01-30T10:00:00Z"', MESSAGES),
    ("replay general 1643723400 json", MESSAGES),
    ("events general", "event_type count last_sent"),
    ("events general 48", "event_type count last_sent"),
    ("broadcast general", BROADCASTS),
    ("cleanup", CLEANUP),
    ("broadcast cleanup 48", NUMBER),
    ("presence track user-123 general online", ID),
    ("presence track user-123 general away", ID),
    ("presence track user-123 general offline", ID),
    ("presence track user-123 general", ID),
    ("""presence track user-123 game-lobby online '{"level": 5, "score": 1000}'""", ID),
    ("""presence track user-123 game-lobby online '{"score": 1500, "level": 6}'""", ID),
    ("presence track user-123", ID),
    ("presence get user-123 general", PRESENCE),
    ("presence get user-123", PRESENCE),
    ("presence get user-123 general json", PRESENCE),
    ("presence online general", ONLINE),
    ("presence online", ONLINE),
    ("presence online general json", ONLINE),
    ("presence count general", NUMBER),
    ("presence count", NUMBER),
    ("presence offline user-123 general", NUMBER),
    ("presence offline user-123", NUMBER),
    ("presence cleanup", NUMBER),
    ("presence cleanup 600", NUMBER),
    ("presence stats", "online away offline total_users total_channels"),
    ("connections", CONNECTIONS),
    ("connections --json", SILENT + "[]"),
    ("logs", "sent_at channel event_type payload"),
    ("-h", "[anything]"),
]
MARK = "=== "
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture
def tables(prepared: TestDatabase) -> None:
    prepared.execute(
        "create table public.users (id integer primary key);"
        "create table public.posts (id integer primary key);"
        "create table public.comments (id integer primary key, post_id text)"
    )


def script(lines: list[str], tmp_path: Path, prefix: str = "nself realtime") -> Path:
    program = tmp_path / "walstream"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m walstream \"$@\"\n")
    program.chmod(0o755)
    path = tmp_path / "lines.sh"
    text = [f". '{ROOT / 'deploy/nself-alias.sh'}'"]
    for line in lines:
        text += [f"printf '%s\\n' '{MARK}'", f'{prefix} {line} || echo "exit $?"']
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def columns(shown: str) -> str:
    """What was printed, as ``LINES`` has it: the columns in their order, or what the one line is."""
    if shown.startswith(("[{", "{")):
        value = json.loads(shown)
        return " ".join(value[0] if isinstance(value, list) else value)
    lines = shown.splitlines() or [""]
    if re.fullmatch(UUID, shown.strip()):
        return ID
    if shown.strip().isdecimal():
        return NUMBER
    # A record has one line for each field.
    if len(lines) > 2 and re.fullmatch(rf"id +{UUID}", lines[0]):
        return " ".join(line.split()[0] for line in lines)
    return " ".join(lines[0].split())


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_documented_line_runs_unchanged(
    walstream: Walstream, prepared: TestDatabase, tmp_path: Path, shell: str
) -> None:
    found = shutil.which(shell)
    assert found is not None
    # A process for each line takes its time: the second shell gets those that quote.
    lines = (
        LINES if shell == "sh" else [line for line in LINES if line[0].startswith(("channel create", "channel list"))]
    )
    done = subprocess.run(
        [found, str(script([line for line, _ in lines], tmp_path))],
        env={**walstream.environ, "PATH": f"{tmp_path}:{walstream.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    answers = done.stdout.split(MARK + "\n")[1:]
    assert len(answers) == len(lines), done
    assert "Traceback" not in done.stderr
    for (line, wanted), shown in zip(lines, answers, strict=True):
        assert "\nexit " not in "\n" + shown, (line, shown, done.stderr)
        if wanted.startswith("+ "):
            first = shown.split() if line == "status" else shown.splitlines()[0].split()
            assert set(wanted[2:].split()) <= set(first), line
        elif wanted != "[anything]":
            assert columns(shown) == wanted, (line, shown)


def test_the_reference_names_every_command() -> None:
    documented = {line.split()[0] for line, _ in LINES}
    assert documented <= set(COMMANDS) | {"-h"}
    assert set(COMMANDS) - documented == {"serve", "dev", "doctor", "config", "token", "slot", "message", "top"}


def test_the_later_spelling_and_other_programs_of_that_name(walstream: Walstream, tmp_path: Path) -> None:
    path = script(["channel create general"], tmp_path, "nself service realtime")
    (tmp_path / "nself").write_text('#!/bin/sh\necho "the other nself: $*"\n')
    (tmp_path / "nself").chmod(0o755)
    with path.open("a") as file:
        file.write("nself start --all 'a b'\nnself service email\nnself\n")
    done = subprocess.run(
        ["/bin/sh", str(path)],
        env={**walstream.environ, "PATH": f"{tmp_path}:{walstream.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert re.fullmatch(UUID, lines[1])
    assert lines[2:] == ["the other nself: start --all a b", "the other nself: service email", "the other nself: "]


def test_no_command_is_usage_and_an_unknown_one_an_error(walstream: Walstream, tmp_path: Path) -> None:
    for line in ("", "nosuch", "channel nosuch"):
        done = subprocess.run(
            ["/bin/sh", str(script([line], tmp_path))],
            env={**walstream.environ, "PATH": f"{tmp_path}:{walstream.environ['PATH']}"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.stdout == f"{MARK}\nexit 2\n"
        assert "Usage: " in done.stderr
