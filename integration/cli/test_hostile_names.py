"""Names that are SQL, quotes, pictures or written from the right, in every argument: no traceback, nothing injected."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest

from integration.cli.conftest import InProcess
from integration.fixtures.postgres import TestDatabase
from walstream.channel.slug import SLUG_BYTES_MAX

SQL = [
    "'; drop table realtime.messages; --",
    "x'); drop schema realtime cascade; --",
    "1; drop table realtime.presence",
    "50; delete from realtime.messages",
    "u' or '1'='1",
    "$$; select pg_sleep(60); $$",
    "'||pg_sleep(60)||'",
    "\\'; drop table realtime.channels; --",
    "%s %(slug)s {channels} {0}",
    "general' union select usename, passwd from pg_shadow --",
]
NAMES = [
    *SQL,
    'a "quoted" name',
    "it's",
    "a.b.c",
    "🎉👩‍👩‍👧👍🏽",
    "مرحبا بالعالم",
    "\u202eright to left",
    "Ünï cödé",
    "日本語",
    "back\\slash",
    "two\nlines\tand a tab",
    "*",
    "a,b,c",
    "x" * SLUG_BYTES_MAX,
    "é" * (SLUG_BYTES_MAX // 2),
    "[red]markup[/red]",
    "\x1b[31mred",
]
STATE = """
select (select count(*) from pg_class where relnamespace = 'realtime'::regnamespace),
       (select count(*) from realtime.channels), (select count(*) from realtime.channel_members),
       (select count(*) from realtime.messages), (select count(*) from realtime.presence)
"""


@pytest.mark.parametrize("names", [NAMES[part::4] for part in range(4)], ids=range(4))
def test_a_name_is_a_name_in_every_argument(run: InProcess, prepared: TestDatabase, names: list[str]) -> None:
    for name in names:
        use_everywhere(run, prepared, name)


def use_everywhere(run: InProcess, prepared: TestDatabase, name: str) -> None:
    def value(*words: str) -> Any:
        command = 2 if words[0] in ("channel", "presence") else 1
        return run.ok(*words[:command], "--json", "--", *words[command:]).value

    has_controls = any(unicodedata.category(character) == "Cc" for character in name)  # no slug has, all else may
    slug = "slug" if has_controls else name
    channel = run.ok("channel", "create", "--slug", slug, "--", name).out.strip()
    assert prepared.query("select id::text, slug, name from realtime.channels") == [(channel, slug, name)]
    assert value("channel", "get", slug)["name"] == name
    assert value("channel", "list")[0]["slug"] == slug

    run.ok("channel", "join", "--", slug, name)
    assert value("channel", "join", slug, name, "admin")["user_id"] == name
    run.ok("channel", "mute", "--", slug, name)
    assert value("channel", "members", slug)[0]["user_id"] == name

    run.ok("broadcast", "--", slug, name, json.dumps({name: name}), name)
    shown = value("messages", slug)
    assert [(row["event_type"], row["payload"], row["sender_id"]) for row in shown] == [(name, {name: name}, name)]
    assert value("replay", slug, "0") == shown
    assert value("events", slug)[0]["event_type"] == name
    assert value("broadcast", slug)["unique_senders"] == 1
    assert (value("logs")[0]["channel"], len(run.ok("logs").out.rstrip("\n").split("\n"))) == (slug, 2)

    run.ok("presence", "track", "--", name, slug, "away", json.dumps({name: name}))
    assert value("presence", "get", name, slug)[0]["metadata"] == {name: name}
    assert value("presence", "online", slug)[0]["user_id"] == name
    assert run.ok("presence", "count", "--", slug).out == "1\n"
    for form in ("table", "csv"):
        run.ok("messages", "--format", form, "--", slug)
        run.ok("channel", "members", "--format", form, "--", slug)
        run.ok("presence", "online", "--format", form, "--", slug)
    run.ok("presence", "offline", "--", name, slug)
    assert prepared.query(STATE)[0][1:] == (1, 1, 1, 1)
    run.ok("channel", "leave", "--", slug, name)
    run.ok("channel", "update", "--name", name, "--", slug)
    run.ok("channel", "delete", "--force", "--", slug)


def test_sql_where_numbers_ids_and_times_belong_is_refused(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "general")
    run.ok("channel", "join", "general", "u1")
    run.ok("broadcast", "general", "e", "1")
    run.ok("presence", "track", "u1", "general")
    before = prepared.query(STATE)
    places: list[tuple[tuple[str, ...], int]] = [
        (("channel", "create", "new", "{}"), 2), (("channel", "create", "new", "public", "{}"), 2),
        (("channel", "create", "new", "--retention-hours={}"), 2), (("channel", "list", "{}"), 2),
        (("channel", "get", "{}"), 3), (("channel", "delete", "{}", "--force"), 3),
        (("channel", "delete", "general", "{}"), 2), (("channel", "join", "{}", "u1"), 3),
        (("channel", "join", "general", "u1", "{}"), 2), (("channel", "leave", "general", "{}"), 3),
        (("channel", "members", "{}"), 3), (("channel", "role", "general", "u1", "{}"), 2),
        (("broadcast", "{}", "e", "1"), 3), (("broadcast", "general", "e", "{}"), 2), (("broadcast", "{}"), 3),
        (("broadcast", "cleanup", "{}"), 2), (("broadcast", "general", "e", "1", "--ttl={}"), 2),
        (("message", "delete", "{}"), 2), (("messages", "{}"), 3), (("messages", "general", "{}"), 2),
        (("replay", "{}", "0"), 3), (("replay", "general", "{}"), 2), (("replay", "general", "2026-01-30/{}"), 2),
        (("events", "{}"), 3), (("events", "general", "{}"), 2), (("presence", "track", "u1", "{}"), 3),
        (("presence", "track", "u1", "general", "{}"), 2), (("presence", "track", "u1", "general", "online", "{}"), 2),
        (("presence", "get", "{}"), 3), (("presence", "get", "u1", "{}"), 3), (("presence", "online", "{}"), 3),
        (("presence", "count", "{}"), 3), (("presence", "offline", "{}"), 3), (("presence", "cleanup", "{}"), 2),
        (("cleanup", "--hours={}"), 2), (("cleanup", "--timeout={}"), 2), (("logs", "--lines={}"), 2),
    ]  # fmt: skip
    for text in SQL:
        for words, code in places:
            arguments = [word.replace("{}", text) for word in words]
            done = run(*arguments)
            assert (done.code, done.out) == (code, ""), (arguments, done)
    assert prepared.query(STATE) == before


def test_what_no_text_of_postgresql_holds_is_a_usage_error(run: InProcess) -> None:
    for arguments in (("channel", "get", "a\0b"), ("presence", "track", "u\0"), ("broadcast", "a", "e\0", "1")):
        done = run(*arguments)
        assert (done.code, "NUL" in done.err) == (2, True)
