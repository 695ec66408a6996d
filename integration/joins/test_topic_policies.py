"""Policies on ``messages``: our answers against rows that PostgreSQL really reads and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import psycopg2
import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase, migrate
from walstream.channel.permission import (
    CANCELED,
    POLICY_ERROR,
    READS_ALL,
    READS_NOTHING,
    WRITES_ALL,
    WRITES_NOTHING,
    Answer,
    Question,
    Reading,
    Trouble,
    Writing,
)
from walstream.shell.database import topic_policies
from walstream.shell.database.topic_policies import judge, watch_policies

ADA = "11111111-1111-1111-1111-111111111111"
BOB = "22222222-2222-2222-2222-222222222222"
CHANNEL = "33333333-3333-3333-3333-333333333333"

SETUP = f"""
create table public.members (uid text, room text);
insert into public.members values ('{ADA}', 'team'), ('{ADA}', 'tëam "x"');
grant select on public.members to authenticated;
create table public.hidden (room text);
create schema app;
grant usage on schema app to authenticated, anon;
create function app.uid() returns text language sql stable as $$
    select current_setting('request.jwt.claims', true)::jsonb ->> 'sub' $$;
create function app.in_room(m realtime.messages) returns boolean language sql stable as $$
    select exists (select from members where uid = app.uid() and room = (m).topic) $$;
create function app.fails() returns boolean language plpgsql as $$ begin raise exception 'no luck'; end $$;
"""

MEMBERS_READ = """for select to authenticated using (extension in ('broadcast', 'presence') and exists (
    select from public.members m where m.uid = app.uid() and m.room = realtime.topic()))"""
CLAIMS_AND_HEADERS = """for all using ((current_setting('request.jwt.claims')::jsonb ->> 'team') = topic)
    with check ((current_setting('request.headers')::jsonb ->> 'x-door') = 'open')"""
OLD_SETTINGS = """for all using (current_setting('request.jwt.claim.sub') <> ''
    and current_setting('request.jwt.claim.role') = current_user::text)"""

POLICIES: dict[str, Sequence[str]] = {
    "none": (),
    "for all": ("for all using (true)",),
    "by extension": (
        "for select to authenticated using (extension = 'broadcast')",
        "for insert to authenticated with check (extension = 'presence')",
    ),
    "membership": (
        MEMBERS_READ,
        "for insert to authenticated with check (extension like 'p%' and topic = 'team')",
    ),
    "a name of the row inside a query": (
        "for select using (exists (select from public.members where room = topic and uid = app.uid()))",
    ),
    "the whole row": ("for select using (app.in_room(messages))", "for insert with check (messages is not null)"),
    "restrictive": (
        "for all using (true)",
        "as restrictive for select using (topic <> 'team')",
        "as restrictive for insert with check (extension <> 'persistence')",
    ),
    "restrictive alone": ("as restrictive for all using (true)",),
    "null": ("for all using (null::boolean)",),
    "roles": ("for all to service_role using (true)", "for select to anon using (private)"),
    "claims and headers": (CLAIMS_AND_HEADERS,),
    "old settings": (OLD_SETTINGS,),
    "a right that is missing": ("for select using (exists (select from public.hidden where room = topic))",),
    "one that fails": ("for select using (app.fails())", "for insert with check (topic::int > 0)"),
    "one that fails only elsewhere": ("for select using (topic = 'team' or topic::int > 0)",),
    "itself": ("for select using (exists (select from realtime.messages x where x.topic = messages.topic))",),
    "times": ("for all using (inserted_at > now() - interval '1 hour' and sent_at is not null and id is not null)",),
}  # fmt: skip


def question(
    role: str = "authenticated", sub: str = ADA, topic: str = "team", *, writes: bool = False, **claims: object
) -> Question:
    text = json.dumps({"sub": sub, "role": role, **claims})
    return Question(role, sub, text, '{"x-door":"open"}', topic, None, writes)


QUESTIONS = [
    question(role, sub, topic, writes=writes, team="team")
    for role in ("authenticated", "anon")
    for sub in (ADA, BOB, "")
    for topic in ("team", 'tëam "x"', "100% sure")
    for writes in (False, True)
]


@pytest.fixture
def facts(any_database: TestDatabase, facts: PgConnection) -> PgConnection:
    """A connection to a database with our schema, and a few things of an application."""
    migrate(any_database.dsn)
    any_database.execute(SETUP)
    return facts


def create(database: TestDatabase, policies: Sequence[str]) -> None:
    for number, policy in enumerate(policies):
        kind, rest = ("as restrictive ", policy[15:]) if policy.startswith("as restrictive ") else ("", policy)
        database.execute(f"create policy p{number} on realtime.messages {kind}{rest}")


def probed(connection: PgConnection, asked: Question) -> Answer:
    """The answer by rows that are really there: inserted, looked for, and rolled back."""
    with connection.cursor() as cursor:
        cursor.execute("begin")
        try:
            extensions = ("broadcast", "presence", "persistence") if asked.writes else ("broadcast", "presence")
            ids = {}
            for extension in extensions:
                cursor.execute(
                    "insert into realtime.messages (topic, extension, private) values (%s, %s, true)"
                    " returning id::text", (asked.topic, extension),
                )  # fmt: skip
                (ids[extension],) = cursor.fetchone() or (None,)
            settings = {
                "search_path": '"$user", public', "realtime.topic": asked.topic, "request.jwt.claims": asked.claims,
                "request.jwt.claim.sub": asked.sub, "request.jwt.claim.role": asked.role,
                "request.headers": asked.headers, "role": asked.role,
            }  # fmt: skip
            for name, value in settings.items():
                cursor.execute("select set_config(%s, %s, true)", (name, value))
            found = []
            for extension in extensions:
                cursor.execute("savepoint s")
                try:
                    if asked.writes:
                        cursor.execute(
                            "insert into realtime.messages (topic, extension, private, sender_id)"
                            " values (%s, %s, true, %s)", (asked.topic, extension, asked.sub or None),
                        )  # fmt: skip
                        found.append(True)
                    else:
                        cursor.execute("select from realtime.messages where id = %s", (ids[extension],))
                        found.append(cursor.rowcount == 1)
                except psycopg2.errors.InsufficientPrivilege as error:
                    if "row-level security" not in str(error):
                        return Trouble(POLICY_ERROR, "")
                    found.append(False)
                    cursor.execute("rollback to savepoint s")
                except psycopg2.Error:
                    return Trouble(POLICY_ERROR, "")
            return Writing(*found) if asked.writes else Reading(*found)
        finally:
            cursor.execute("rollback")


@pytest.mark.parametrize("name", POLICIES)
def test_a_row_that_nobody_writes_is_judged_like_one_that_is_there(
    facts: PgConnection, any_database: TestDatabase, name: str
) -> None:
    create(any_database, POLICIES[name])
    answers = judge(facts, "realtime", QUESTIONS, seconds=60)
    for asked in QUESTIONS:
        expected, found = probed(facts, asked), answers[asked]
        if isinstance(expected, Trouble):
            assert isinstance(found, Trouble), (asked, found)
            assert found.code == POLICY_ERROR
        else:
            assert found == expected, asked


@pytest.mark.parametrize(
    ("change", "asked", "expected"),
    [
        ("revoke select on realtime.messages from authenticated", question(), READS_NOTHING),
        ("revoke insert on realtime.messages from authenticated", question(writes=True), WRITES_NOTHING),
        ("revoke usage on schema realtime from authenticated", question(), READS_NOTHING),
        ("alter table realtime.messages disable row level security", question("anon"), READS_ALL),
        ("select", question("service_role"), READS_ALL),
        ("select", question("service_role", writes=True), WRITES_ALL),
        ("select", question("nobody_of_that_name"), READS_NOTHING),
        ("select", question("nobody\0"), READS_NOTHING),
        ("select", question("postgres"), READS_NOTHING),
        ("select", question(topic="\0"), READS_NOTHING),
        ("select", question(sub="\ud800"), READS_NOTHING),
        ("drop table realtime.messages cascade", question(), READS_NOTHING),
    ],
)
def test_what_stands_before_and_beside_policies(
    facts: PgConnection, any_database: TestDatabase, change: str, asked: Question, expected: Answer
) -> None:
    any_database.execute("create policy p on realtime.messages to authenticated using (true)")
    any_database.execute(change)
    assert judge(facts, "realtime", [asked], seconds=60) == {asked: expected}


def test_the_role_that_init_makes_for_the_daemon_may_ask(facts: PgConnection, any_database: TestDatabase) -> None:
    create(any_database, POLICIES["membership"])
    expected = judge(facts, "realtime", QUESTIONS, seconds=60)
    with facts.cursor() as cursor:
        cursor.execute("set session authorization walstream_daemon")
    assert judge(facts, "realtime", QUESTIONS, seconds=60) == expected
    assert watch_policies(facts, "realtime").admits
    assert len(set(expected.values())) > 2


def test_a_policy_that_writes_is_one_that_fails(facts: PgConnection, any_database: TestDatabase) -> None:
    any_database.execute(
        "create function app.notes() returns boolean language plpgsql security definer as"
        " $$ begin insert into public.members values ('x', 'y'); return true; end $$"
    )
    create(any_database, ["for select using (app.notes())"])
    (answer,) = judge(facts, "realtime", [question()], seconds=60).values()
    assert isinstance(answer, Trouble)
    assert "read-only" in answer.text


def test_a_registered_channel_and_the_sender_are_in_the_row(facts: PgConnection, any_database: TestDatabase) -> None:
    create(
        any_database, [f"for select using (channel_id = '{CHANNEL}')", "for insert with check (sender_id = app.uid())"]
    )
    asked = question()._replace(channel_id=CHANNEL)
    writing, nobody = question(writes=True), question(sub="", writes=True)
    answers = judge(facts, "realtime", [asked, question(), writing, nobody], seconds=60)
    assert list(answers.values()) == [READS_ALL, READS_NOTHING, WRITES_ALL, WRITES_NOTHING]


def test_one_policy_that_takes_too_long_fails_alone(
    facts: PgConnection, any_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_policies, "QUESTION_MS", 100)
    create(any_database, ["for select using (topic <> 'slow' or pg_sleep(60) is not null)"])
    asked = [question(topic="slow"), question(topic="quick")]
    assert list(judge(facts, "realtime", asked, seconds=60).values()) == [CANCELED, READS_ALL]
    assert list(judge(facts, "realtime", asked, seconds=0)) == asked[:1]  # the rest is for the next time


def test_nothing_is_written_and_nothing_stays_set(facts: PgConnection, any_database: TestDatabase) -> None:
    create(any_database, ["for all using (true)"])
    before = any_database.scalar("select pg_snapshot_xmax(pg_current_snapshot())")
    assert judge(facts, "realtime", QUESTIONS, seconds=60)
    assert any_database.scalar("select pg_snapshot_xmax(pg_current_snapshot())") == before
    with facts.cursor() as cursor:
        cursor.execute(
            "select current_user = session_user, coalesce(current_setting('request.jwt.claims', true), ''),"
            " current_setting('search_path')"
        )
        assert cursor.fetchone() == (True, "", "")


CHANGES: dict[str, Callable[[TestDatabase], None]] = {
    "a new policy": lambda database: create(database, ["for select using (true)"]),
    "a grant": lambda database: database.execute("revoke select on realtime.messages from anon"),
    "row-level security": lambda database: database.execute("alter table realtime.messages disable row level security"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(
    facts: PgConnection, any_database: TestDatabase, change: Callable[[TestDatabase], None]
) -> None:
    before = watch_policies(facts, "realtime")
    assert not before.admits
    assert watch_policies(facts, "realtime") == before
    change(any_database)
    after = watch_policies(facts, "realtime")
    assert after.fingerprint != before.fingerprint
    assert after.admits == (change is not CHANGES["a grant"])
