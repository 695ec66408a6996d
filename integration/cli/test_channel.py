"""channel: what is made, listed, changed and deleted, and what each refuses."""

from __future__ import annotations

import re
import uuid

from integration.cli.conftest import InProcess
from integration.fixtures.postgres import TestDatabase


def test_create_prints_the_id_alone_and_public_is_the_default(run: InProcess, prepared: TestDatabase) -> None:
    made = run.ok("channel", "create", "General Talk")
    assert str(uuid.UUID(made.out.strip())) + "\n" == made.out
    assert prepared.query("select id::text, slug, name, type, metadata, persist from realtime.channels") == [
        (made.out.strip(), "general-talk", "General Talk", "public", {}, True)
    ]


def test_creating_again_changes_nothing_unless_told(run: InProcess, prepared: TestDatabase) -> None:
    first = run.ok("channel", "create", "Billing", "private", '{"a": 1}').out
    refused = run("channel", "create", "billing")
    assert (refused.code, refused.out) == (1, "")
    assert "[conflict]" in refused.err
    assert "--update" in refused.err
    assert run.ok("channel", "create", "billing", "--update", "--no-persist").out == first
    state = "select name, type, metadata, persist from realtime.channels"
    assert prepared.query(state) == [("Billing", "private", {"a": 1}, False)]
    told = run.ok("channel", "create", "billing", "presence", "--update")
    assert "set: type" in told.err
    assert prepared.query(state) == [("Billing", "presence", {"a": 1}, False)]
    other = run.ok("channel", "create", "billing", "--slug", "billing-2")
    assert other.out != first


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("x", "open"), "'open' is not one of"),
    (("x", "public", "{}}"), "METADATA is no JSON"),
    (("x", "public", "[1]"), "METADATA is no JSON object"),
    (("x", "public", '{"a": "\\u0000"}'), "METADATA: "),
    (("x", "public", "@/nowhere/at/all"), "cannot read /nowhere/at/all"),
    (("",), "name is empty"),
    (("!!!",), "no slug"),
    (("x", "--slug", "a" * 247), "longer than 246 bytes"),
    (("x", "--slug", "6b1f8f7a-0000-4000-8000-000000000000"), "form of an id"),
    (("x", "--slug", "table:public.users"), "tables"),
    (("x", "--retention-hours", "-1"), "--retention-hours: '-1'"),
    (("x", "--retention-hours", "many"), "--retention-hours: 'many'"),
]


def test_what_no_channel_can_be_is_a_usage_error(run: InProcess) -> None:
    for arguments, text in REFUSED:
        done = run("channel", "create", *arguments)
        assert (done.code, done.out) == (2, "")
        assert text in done.err


def test_metadata_comes_from_a_pipe_as_well(run: InProcess, prepared: TestDatabase) -> None:
    run("channel", "create", "a", "private", "-", stdin='{"max_members": 1, "n": 12345678901234567890.5}')
    assert prepared.scalar("select metadata->>'n' from realtime.channels") == "12345678901234567890.5"
    assert '"n":12345678901234567890.5' in run.ok("channel", "get", "a", "json").out.replace(" ", "")


def test_list_has_the_documented_columns_and_counts_people(run: InProcess, prepared: TestDatabase) -> None:
    for name, kind in (("General", "public"), ("Support", "private"), ("Lobby", "presence")):
        run.ok("channel", "create", name, kind)
    run.ok("channel", "join", "general", "u1")
    prepared.execute(
        "insert into realtime.presence (user_id, topic, node_id) values"
        " ('u1', 'general', ''), ('u1', 'general', 'n1'), ('u2', 'general', 'n1'), ('u2', null, '')"
    )
    lines = run.ok("channel", "list").out.splitlines()
    assert lines[0].split() == ["id", "slug", "name", "type", "members", "online", "created_at"]
    assert re.fullmatch(r"[0-9a-f-]{36}  general  General  public    1        2       \d{4}-\d\d-\d\d", lines[1])
    rows = run.json("channel", "list")
    assert [(row["slug"], row["members"], row["online"]) for row in rows] == [
        ("general", 1, 2), ("lobby", 0, 0), ("support", 0, 0)
    ]  # fmt: skip
    assert [row["slug"] for row in run.json("channel", "list", "private")] == ["support"]
    assert run.ok("channel", "list", "all", "--format", "csv").out.count("\n") == 4
    assert run.ok("channel", "list", "json").out == run.ok("channel", "list", "--format", "json").out
    assert run("channel", "list", "secret").code == 2


def test_get_takes_the_id_before_the_slug(run: InProcess, prepared: TestDatabase) -> None:
    first = run.ok("channel", "create", "first").out.strip()
    prepared.execute("insert into realtime.channels (slug, name) values (%s, 'imposter')", (first,))
    assert run.json("channel", "get", first)["name"] == "first"
    assert run.json("channel", "get", first.upper())["name"] == "first"
    fields = run.json("channel", "get", "first")
    assert list(fields) == [
        "id", "slug", "name", "type", "metadata", "total_members", "online_members", "created_at", "updated_at"
    ]  # fmt: skip
    missing = run("channel", "get", "frist")
    assert (missing.code, missing.out) == (3, "")
    assert missing.err == "error: there is no channel frist [not_found]\nrepair: did you mean first?\n"


def test_update_sets_only_what_is_named(run: InProcess, prepared: TestDatabase) -> None:
    channel = run.ok("channel", "create", "a", "private", '{"x": 1}').out
    run.ok("channel", "update", "a", "--name", "Anew", "--retention-hours", "5")
    state = "select name, type, metadata, persist, retention_hours from realtime.channels"
    assert prepared.query(state) == [("Anew", "private", {"x": 1}, True, 5)]
    assert run.ok("channel", "update", "a", "--retention-hours", "0", "--no-persist").out == channel
    assert prepared.query(state) == [("Anew", "private", {"x": 1}, False, None)]
    assert run("channel", "update", "a").code == 2


def test_delete_asks_and_takes_everything_along(run: InProcess, prepared: TestDatabase) -> None:
    channel = run.ok("channel", "create", "a").out
    run.ok("channel", "join", "a", "u1")
    run.ok("broadcast", "a", "e", "1")
    refused = run("channel", "delete", "a")
    assert (refused.code, prepared.scalar("select count(*) from realtime.channels")) == (2, 1)
    assert "--force" in refused.err
    assert run("channel", "delete", "a", "false").code == 2
    done = run.ok("channel", "delete", "a", "true")
    assert (done.out, done.err) == (channel, "deleted a: 1 members, 1 messages\n")
    for table in ("channels", "channel_members", "messages"):
        assert prepared.scalar(f"select count(*) from realtime.{table}") == 0
    assert run("channel", "delete", "a", "--force").code == 3


def test_members_join_once_and_keep_their_time(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "a", "private", '{"max_members": 2}')
    first = run.json("channel", "join", "a", "u1", "admin")
    assert (first["user_id"], first["role"], first["channel"]) == ("u1", "admin", "a")
    again = run.json("channel", "join", "a", "u1")
    assert (again["id"], again["role"], again["joined_at"]) == (first["id"], "admin", first["joined_at"])
    assert run.json("channel", "join", "a", "u1", "moderator")["role"] == "moderator"
    run.ok("channel", "join", "a", "u2")
    full = run("channel", "join", "a", "u3")
    assert (full.code, "[conflict]" in full.err, "max_members" in full.err) == (1, True, True)
    assert run("channel", "join", "a", "u4", "owner").code == 2
    assert run("channel", "join", "a", "").code == 2
    assert run("channel", "join", "a", "u" * 256).code == 2
    assert run("channel", "join", "nowhere", "u1").code == 3
    run.ok("presence", "track", "u1", "a", "away")
    rows = run.json("channel", "members", "a")
    assert list(rows[0]) == ["user_id", "role", "status", "joined_at", "last_seen_at"]
    assert [(row["user_id"], row["status"]) for row in rows] == [("u1", "away"), ("u2", "offline")]
    assert run("channel", "members", "nowhere").code == 3
    assert run.ok("channel", "leave", "a", "u2").err == "u2 is no longer member of a\n"
    gone = run("channel", "leave", "a", "u2")
    assert (gone.code, gone.out) == (3, "")
    assert "u2 is no member of a [not_found]" in gone.err


def test_moderation_of_members(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "closed", "private")
    run.ok("channel", "create", "open")
    run.ok("channel", "join", "closed", "u1")
    run.ok("channel", "role", "closed", "u1", "moderator")
    assert run("channel", "role", "closed", "u2", "moderator").code == 3
    assert run("channel", "role", "closed", "u1", "king").code == 2
    run.ok("channel", "mute", "closed", "u1")
    assert run("channel", "mute", "closed", "u2").code == 3
    run.ok("channel", "mute", "open", "u2")
    muted = "select user_id, role from realtime.channel_members where muted order by 1"
    assert prepared.query(muted) == [("u1", "moderator"), ("u2", "member")]
    assert [row["muted"] for row in run.json("channel", "members", "closed", "--wide")] == [True]
    run.ok("channel", "unmute", "closed", "u1")
    run.ok("channel", "unmute", "open", "u2")
    assert prepared.query(muted) == []
    assert run("channel", "unmute", "open", "u3").code == 3
