"""broadcast, messages, replay, events, message and logs: what is stored, told, found again and taken back."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path

import pytest

from integration.cli.conftest import InProcess, Walstream
from integration.fixtures.postgres import TestDatabase
from walstream.shell.commands import logs
from walstream.shell.commands.own_tables import OwnTables

COLUMNS = ["id", "event_type", "payload", "sender_id", "sent_at"]


@pytest.fixture
def channel(run: InProcess) -> str:
    """The id of a public channel, general."""
    return run.ok("channel", "create", "general").out.strip()


def at(database: TestDatabase, times: list[str]) -> None:
    """Messages e0, e1 … of general at these times."""
    for number, sent in enumerate(times):
        database.execute(
            "insert into realtime.messages (topic, event, payload, sent_at)"
            " values ('general', %s, '1', %s::timestamptz)",
            (f"e{number}", sent),
        )


def test_a_broadcast_is_stored_and_told_in_one_transaction(
    run: InProcess, prepared: TestDatabase, channel: str
) -> None:
    listener = prepared.connect()
    with listener.cursor() as cursor:
        cursor.execute(f'listen "realtime:bus"; listen "realtime:channel:{channel}"')
        sent = run.ok("broadcast", "general", "user.joined", '{"user_id": "123", "n": 1.10}', "user-123").out.strip()
        cursor.execute("select 1")
    told = {(notice.channel, notice.payload) for notice in listener.notifies}
    listener.close()
    assert told == {("realtime:bus", f"m{sent}"), (f"realtime:channel:{channel}", sent)}
    assert prepared.query(
        "select id::text, topic, channel_id::text, event, event_type, payload::text, sender_id, private, expires_at"
        "  from realtime.messages"
    ) == [
        (
            sent,
            "general",
            channel,
            "user.joined",
            "user.joined",
            '{"n": 1.10, "user_id": "123"}',
            "user-123",
            False,
            None,
        )
    ]


def test_a_channel_that_keeps_nothing_gets_its_messages_all_the_same(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "passing", "--no-persist")
    run.ok("broadcast", "passing", "e", "1")
    run.ok("broadcast", "passing", "e", "1", "--ttl", "5")
    ages = "select round(extract(epoch from expires_at - sent_at)) from realtime.messages order by seq"
    assert [int(age) for (age,) in prepared.query(ages)] == [60, 5]


def test_payloads_come_from_anywhere_and_are_bounded(
    run: InProcess, prepared: TestDatabase, channel: str, tmp_path: Path
) -> None:
    file = tmp_path / "payload.json"
    largest = json.dumps("x" * (1024 * 1024 - 2))
    file.write_text(largest)
    run.ok("broadcast", "general", "e", f"@{file}")
    assert run("broadcast", "general", "e", "-", stdin='\n{\n "a": {"b": [1, 2]}\n}\n').code == 0
    file.write_text(largest + " ")
    large = run("broadcast", "general", "e", f"@{file}")
    assert (large.code, "more than 1048576 bytes" in large.err, "[input_error]" in large.err) == (2, True, True)
    for payload in ("{", "", "nonsense", "{'a': 1}", '"\\u0000"', '"\\ud800"', "[" * 100_000, "1e999999"):
        refused = run("broadcast", "general", "e", payload)
        assert (refused.code, refused.out) == (2, ""), payload[:20]
        assert "[input_error]" in refused.err
        assert "\nrepair: " in refused.err
    assert prepared.scalar("select count(*) from realtime.messages") == 2


def test_what_cannot_be_sent(run: InProcess, channel: str) -> None:
    assert run("broadcast", "nowhere", "e", "1").code == 3
    assert run("broadcast", "general", "", "1").code == 2
    assert run("broadcast", "general", "e" * 256, "1").code == 2
    assert run("broadcast", "general", "e", "1", "s" * 256).code == 2
    for words in ((), ("general", "e"), ("general", "e", "1", "s", "surplus"), ("cleanup",), ("cleanup", "1", "2")):
        done = run("broadcast", *words)
        assert (done.code, done.out) == (2, "")
        assert "Usage: " in done.err
    assert run("broadcast", "cleanup", "many").code == 2


def test_a_channel_may_have_schemas(run: InProcess, prepared: TestDatabase) -> None:
    shape = '{"schemas": {"said": {"type": "object", "required": ["text"]}, "*": {"type": "integer"}}}'
    run.ok("channel", "create", "strict", "public", shape)
    run.ok("broadcast", "strict", "said", '{"text": "Hello"}')
    run.ok("broadcast", "strict", "other", "1")
    for event, payload in (("said", "{}"), ("other", '"x"')):
        refused = run("broadcast", "strict", event, payload)
        assert (refused.code, refused.out, "[input_error]" in refused.err) == (2, "", True)
    assert prepared.scalar("select count(*) from realtime.messages") == 2
    faulty = run("channel", "update", "strict", "--metadata", '{"schemas": {"said": {"type": "thing"}}}')
    assert (faulty.code, "METADATA: schemas: said: " in faulty.err) == (2, True)


def test_messages_are_the_newest_first(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    at(prepared, [f"2026-01-30 10:{minute:02}:00Z" for minute in range(55)])
    rows = run.json("messages", "general")
    assert (len(rows), list(rows[0]), rows[0]["event_type"], rows[-1]["event_type"]) == (50, COLUMNS, "e54", "e5")
    assert [row["event_type"] for row in run.json("messages", "general", "2")] == ["e54", "e53"]
    assert run.ok("messages", "general", "2", "json").value == run.json("messages", "general", "2")
    assert run.ok("messages", "general", "json").value == rows
    assert run.ok("messages", "general", "1").out.splitlines()[0].split() == COLUMNS
    for limit in ("0", "1001", "x", "1; drop table realtime.messages", "1.5"):
        assert run("messages", "general", limit).code == 2
    assert run("messages", "nowhere").code == 3


def test_bytes_are_shown_as_a_data_url(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    prepared.execute(
        "insert into realtime.messages (topic, event, binary_payload) values ('general', 'bytes', '\\x00ff'),"
        " ('general', 'long', decode(repeat('00', 100), 'hex'))"
    )
    payloads = {row["event_type"]: row["payload"] for row in run.json("messages", "general")}
    assert payloads["bytes"] == "data:application/octet-stream;base64,AP8="
    assert payloads["long"].removeprefix("data:application/octet-stream;base64,") == "A" * 134 + "=="


def test_messages_are_taken_back(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    def events(*arguments: str) -> list[str]:
        return [row["event_type"] for row in run.json(*arguments)]

    sent = run.ok("broadcast", "general", "spam", "1").out.strip()
    listener = prepared.connect()
    with listener.cursor() as cursor:
        cursor.execute('listen "realtime:bus"')
        assert run.ok("message", "hide", sent).out == "1\n"
        cursor.execute("select 1")
    (told,) = listener.notifies
    listener.close()
    assert prepared.query(
        "select 'm' || id, topic, event, payload, expires_at < now() + interval '61 s' from realtime.messages"
        " where event <> 'spam'"
    ) == [(told.payload, "general", "message.hidden", {"id": sent, "by": None}, True)]
    assert events("messages", "general") == ["message.hidden"]
    assert events("replay", "general", "0") == ["message.hidden"]
    assert [row["hidden"] for row in run.json("messages", "general", "--hidden", "--wide")] == [False, True]
    assert run.json("message", "unhide", sent) == {"unhidden": 1}
    assert events("replay", "general", "0") == ["spam", "message.hidden"]
    missing = run("message", "delete", sent, str(uuid.UUID(int=7)))
    assert (missing.code, len(events("messages", "general"))) == (3, 2)
    assert run.ok("message", "delete", sent.upper()).out == "1\n"
    assert events("replay", "general", "0") == ["message.hidden", "message.deleted"]
    assert run("message", "delete", "1' or '1'='1").code == 2


def test_replay_is_in_order_from_a_point_in_time(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    at(prepared, ["2026-01-30T10:00:00Z", "2026-01-30T10:00:00.5Z", "2026-01-30T10:00:00.5Z", "2026-01-30T11:00:00Z"])

    def names(*arguments: str) -> list[str]:
        return [row["event_type"] for row in run.json("replay", "general", *arguments)]

    assert names("1769767200") == ["e0", "e1", "e2", "e3"]
    assert names("1769767200.25") == ["e1", "e2", "e3"]
    assert names("2026-01-30T10:00:01Z") == ["e3"]
    assert names("2026-01-30T12:00:01+02:00") == ["e3"]
    assert names("2026-01-30 10:00:01") == ["e3"]
    assert names("2026-01-30") == ["e0", "e1", "e2", "e3"]
    milliseconds = run.ok("replay", "general", "1769767200250", "json")
    assert [row["event_type"] for row in milliseconds.value] == ["e1", "e2", "e3"]
    assert milliseconds.err.startswith("notice: 1769767200250 is read as milliseconds")
    for since in ("", "yesterday", "-1", "1e9", "99999999999999999", "2026-13-01", "2026-01-30T10:00:00Z'; drop"):
        assert run("replay", "general", "--", since).code == 2
    assert run("replay", "nowhere", "0").code == 3


def test_replay_goes_on_where_it_stopped(
    run: InProcess, prepared: TestDatabase, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(prepared, ["2026-01-30T10:00:00Z"] * 5)
    first = run.ok("replay", "general", "0", "--limit", "2", "--json")
    cursor = first.err.strip().removeprefix("go on with ")
    second = run.ok("replay", "general", cursor, "--limit", "1000", "--json")
    assert [row["event_type"] for row in first.value + second.value] == ["e0", "e1", "e2", "e3", "e4"]
    assert run("replay", "general", "here/1").code == 2
    monkeypatch.setattr("walstream.shell.commands.messages.PAGE", 2)
    assert [row["event_type"] for row in run.json("replay", "general", "0")] == ["e0", "e1", "e2", "e3", "e4"]
    lines = run.ok("replay", "general", "0").out.splitlines()
    assert ([line.split()[1] for line in lines], len({len(line.split()) for line in lines[1:]})) == (
        ["event_type", "e0", "e1", "e2", "e3", "e4"], 1,
    )  # fmt: skip
    assert len(run.ok("replay", "general", "0", "csv").out.splitlines()) == 6
    assert run.json("replay", "general", "2030-01-01") == []
    assert run.ok("replay", "general", "2030-01-01").out.split() == COLUMNS


def test_events_are_counted(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    run.ok("channel", "create", "other")
    for name, event in (("general", "a"), ("general", "b"), ("general", "b"), ("other", "a"), ("other", "a")):
        run.ok("broadcast", name, event, "1")
    prepared.execute(
        "insert into realtime.messages (topic, event, payload, sent_at)"
        " values ('general', 'old', '1', now() - interval '30 h')"
    )
    rows = run.json("events", "general")
    assert [(row["event_type"], row["count"]) for row in rows] == [("b", 2), ("a", 1)]
    assert list(rows[0]) == ["event_type", "count", "last_sent"]
    assert [row["event_type"] for row in run.json("events", "general", "48")] == ["b", "a", "old"]
    assert [(row["event_type"], row["count"]) for row in run.json("events")] == [("a", 3), ("b", 2)]
    assert run.ok("events", "json").value == run.json("events")
    assert run("events", "general", "0").code == 2
    assert run("events", "nowhere").code == 3


def test_one_argument_is_the_channels_statistics(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    run.ok("broadcast", "general", "a", "1", "u1")
    at(prepared, ["2026-01-30T10:00:00Z"])
    columns = ["total_messages", "messages_last_hour", "messages_last_day", "unique_event_types", "unique_senders"]
    shown = run.ok("broadcast", "general").out.splitlines()
    assert (shown[0].split(), shown[1].split()) == (columns, ["2", "1", "1", "2", "1"])
    assert run.json("broadcast", "general") == dict(zip(columns, (2, 1, 1, 2, 1), strict=True))
    assert run.ok("broadcast", "general", "json").value == run.json("broadcast", "general")
    assert run("broadcast", "nowhere").code == 3


def test_old_messages_are_deleted_in_batches(
    run: InProcess, prepared: TestDatabase, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walstream.shell.commands.messages.DELETED_AT_ONCE", 2)
    run.ok("channel", "create", "kept", "--retention-hours", "100")
    prepared.execute(
        "insert into realtime.messages (topic, event, payload, sent_at)"
        " select t, 'e', '1', now() - h * interval '1 h' from unnest(array['general', 'kept']) t,"
        "   unnest(array[1, 23, 25, 30, 47, 49, 99, 101]) h"
    )
    run.ok("broadcast", "general", "e", "1", "--ttl", "60")
    done = run.ok("broadcast", "cleanup", "48")
    assert (done.out, done.err) == ("4\n", "deleted 4 messages older than 48 h\n")
    row = run.json("cleanup")
    assert row == {"stale_connections": 0, "expired_broadcasts": 3, "stale_presence": 0}
    prepared.execute("update realtime.messages set expires_at = now() where expires_at is not null")
    assert run.json("broadcast", "cleanup", "1000") == {"expired_broadcasts": 1}
    assert prepared.query("select topic, count(*) from realtime.messages group by 1 order by 1") == [
        ("general", 2), ("kept", 7)
    ]  # fmt: skip


def test_a_channel_named_cleanup_can_be_reached(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "cleanup")
    run.ok("broadcast", "--channel", "cleanup", "e", "1")
    assert run.json("broadcast", "--channel", "cleanup")["total_messages"] == 1
    assert prepared.query("select topic, event from realtime.messages") == [("cleanup", "e")]


def test_cleanup_counts_each_kind(run: InProcess, prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.connections (connection_id, last_seen_at) values"
        " ('conn-1', now() - interval '301 s'), ('conn-2', now());"
        "insert into realtime.presence (user_id, last_seen_at) values ('u1', now() - interval '301 s'), ('u2', now())"
    )
    lines = run.ok("cleanup").out.splitlines()
    assert [line.split() for line in lines] == [
        ["stale_connections", "expired_broadcasts", "stale_presence"], ["1", "0", "1"]
    ]  # fmt: skip
    assert run.json("cleanup", "--timeout", "0", "--hours", "1")["stale_connections"] == 1
    assert run("cleanup", "48").code == 2
    assert run("cleanup", "--hours", "x").code == 2


def test_logs_are_the_last_messages_of_all_topics(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    run.ok("broadcast", "general", "first", "1")
    prepared.execute("select realtime.send('{}', 'second', 'open', false)")
    rows = run.json("logs")
    assert [(row["channel"], row["event_type"]) for row in rows] == [("general", "first"), ("open", "second")]
    assert list(rows[0]) == ["sent_at", "channel", "event_type", "payload"]
    assert [row["event_type"] for row in run.json("logs", "--lines", "1")] == ["second"]


def test_logs_follow(walstream: Walstream, run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "general")
    at(prepared, ["2026-01-30T10:00:00Z"])
    slow = prepared.connect(autocommit=False)
    with slow.cursor() as cursor:
        cursor.execute("insert into realtime.messages (topic, event, payload) values ('general', 'late', '1')")
    with walstream.start("logs", "--follow", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event_type"] == "e0"
        run.ok("broadcast", "general", "soon", "1")
        assert json.loads(process.stdout.readline())["event_type"] == "soon"
        slow.commit()
        assert json.loads(process.stdout.readline())["event_type"] == "late"
        process.send_signal(2)
        assert process.wait(10) == 0
        assert process.stdout.read() == ""
    slow.close()


def test_what_is_followed_comes_once_whatever_its_time(prepared: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST", 6)
    add = (
        "insert into realtime.messages (topic, event, payload, sent_at)"
        " select 'a', e, '1', now() + %s::interval from unnest(%s::text[]) e"
    )
    prepared.execute(add, ("-1 s", ["old", "older"]))
    steps = iter([("1 year", ["future"]), ("0", ["now"]), ("-30 s", ["late"]), ("0", []), ("0", list("abcdefgh"))])
    connection, said = prepared.connect(), list[str]()
    followed = logs.follow(
        OwnTables(connection, "realtime"), 1, lambda _: prepared.execute(add, next(steps)), said.append
    )
    pages = [[row["event_type"] for row in page] for page in itertools.islice(followed, 5)]
    assert (len(pages[0]), pages[1:]) == (1, [["future"], ["now"], ["late"], list("defgh")])
    assert len(said) == 1
    connection.close()


def test_logs_follow_ends_when_nobody_reads(walstream: Walstream, prepared: TestDatabase) -> None:
    at(prepared, ["2026-01-30T10:00:00Z"])
    with walstream.start("logs", "--follow") as process:
        assert process.stdout is not None
        assert "e0" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 0


def test_a_log_file_is_followed_and_may_be_replaced(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("a\nb\nc\n")
    steps = iter(["d\n", None, "f\n"])

    def wait(seconds: float) -> None:
        step = next(steps)
        if step is None:
            log.rename(tmp_path / "daemon.log.1")
            log.write_text("e\n")
        else:
            with log.open("a") as file:
                file.write(step)

    parts = logs.of_file(log, 2, wait)
    assert "".join(itertools.islice(parts, 4)) == "b\nc\nd\ne\nf\n"


def test_the_daemons_log_is_a_file_or_a_journal(run: InProcess, tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("".join(f"line {number}\n" for number in range(60)))
    done = run.ok("logs", "--source", "daemon", "--file", str(log))
    assert done.out.splitlines() == [f"line {number}" for number in range(10, 60)]
    assert run("logs", "--source", "daemon", "--file", str(tmp_path / "none")).code == 3
    assert run("logs", "--file", str(log)).code == 2


def test_a_server_or_schema_that_does_not_fit_is_told_apart(
    run: InProcess, prepared: TestDatabase, channel: str
) -> None:
    writable = run.environ["WALSTREAM_DATABASE_URL"]
    run.environ["WALSTREAM_DATABASE_URL"] = f"{writable} options='-c default_transaction_read_only=on'"
    refused = run("broadcast", "general", "e", "1")
    assert (refused.code, "[database_refused: no_writes]" in refused.err) == (1, True)
    assert run.json("messages", "general") == []
    run.environ["WALSTREAM_DATABASE_URL"] = writable
    prepared.execute("alter table realtime.messages drop column hidden")
    old = run("messages", "general")
    assert (old.code, "[database_refused: undefined_column]" in old.err, "walstream init" in old.err) == (1, True, True)
    run.environ["WALSTREAM_SCHEMA"] = "nowhere"
    assert "[database_refused: undefined_table]" in run("messages", "general").err


def test_who_may_not_is_exit_code_4(run: InProcess, prepared: TestDatabase, channel: str) -> None:
    prepared.execute("create role weak_cli login")
    try:
        run.environ["WALSTREAM_DATABASE_URL"] += " user=weak_cli"
        for arguments in (
            ("messages", "general"),
            ("channel", "create", "x"),
            ("presence", "track", "u1"),
            ("cleanup",),
        ):
            done = run(*arguments)
            assert (done.code, done.out) == (4, "")
            assert "insufficient_privilege" in done.err
    finally:
        prepared.execute("drop role weak_cli")
