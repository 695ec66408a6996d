"""Rows of the WAL are judged as each viewer, by PostgreSQL itself, and nobody's trouble is another one's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import psycopg2.extensions
import pytest
import structlog
import trio

from integration.fixtures.postgres import TestDatabase
from integration.policy.asking import LONG_AGO, Asking, asking, relation_of
from tests.support import run
from walstream.lsn import Lsn
from walstream.model import Row, Transaction
from walstream.policy.model import Ask, Viewer
from walstream.shell.database import judgement
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.judge import Judge, Verdict
from walstream.telemetry.log import POLICY_FAILED

TABLES = """
create schema if not exists auth;
drop function if exists auth.uid();
create function auth.uid() returns text language sql stable
    as $$ select nullif(current_setting('request.jwt.claim.sub', true), '') $$;
create table members (team int, uid text);
insert into members values (1, 'ada'), (2, 'bob'), (2, 'ada');
create table notes (id int primary key, team int, owner text, price numeric);
alter table members enable row level security;
create policy own on members using (uid = auth.uid());
grant usage on schema auth to public; grant select on members to public;
"""
MEMBERSHIP = "exists (select from public.members m where m.team = notes.team and m.uid = auth.uid())"
NOTES = ((1, 1, "ada"), (2, 2, "bob"), (3, 3, "eve"), (4, None, "ada"))


def row(*values: object) -> Row:
    """A row of ``notes``, as a decoder gives it."""
    cells = [json.dumps(value).encode() for value in values]
    return tuple(cells + [b"1.50"] * (4 - len(cells)))


def notes() -> list[Row]:
    return [row(*values) for values in NOTES]


def ask(condition: str = MEMBERSHIP, *columns: str) -> Ask:
    types = {"id": "integer", "team": "integer", "owner": "text", "price": "numeric"}
    return Ask("public", "notes", condition, tuple((name, types[name]) for name in columns or ("team",)))


class World:
    """``notes`` and a role for viewers."""

    def __init__(self, database: TestDatabase) -> None:
        self.database = database
        self.role = f"{database.name}_viewer"
        self.relation, self.catalog = relation_of(database, "notes")

    def viewer(self, uid: str) -> Viewer:
        return Viewer(self.role, json.dumps({"sub": uid, "role": self.role}))

    def judge(self, asked: Asking, uid: str, condition: Ask, rows: list[Row]) -> Callable[[], object]:
        return partial(asked.visible, self.viewer(uid), condition, self.relation, rows)

    def visible(self, condition: Ask, rows: list[Row], *uids: str) -> tuple[dict[str, list[bool]], dict[str, int]]:
        """Per uid which rows are visible, all asked at once; and the doubts."""

        async def work(asked: Asking) -> tuple[dict[str, list[bool]], dict[str, int]]:
            verdicts = {
                uid: [
                    asked.judge.ask(self.viewer(uid), condition, LONG_AGO, self.relation, row, is_old=False)
                    for row in rows
                ]
                for uid in uids
            }
            return {uid: await asked.until(found) for uid, found in verdicts.items()}, asked.counted()

        return asking(self.database.dsn, work, self.catalog)


@pytest.fixture
def world(database: TestDatabase) -> Iterator[World]:
    """Roles belong to the server, so each test has its own."""
    database.execute(TABLES)
    role = f"{database.name}_viewer"
    database.execute(f"create role {role}")
    yield World(database)
    database.execute(f"drop owned by {role}; drop role {role}")


def test_each_viewer_sees_its_own_rows_through_a_join(world: World) -> None:
    answers, doubts = world.visible(ask(), notes(), "ada", "bob", "eve")
    assert answers == {
        "ada": [True, True, False, False],
        "bob": [False, True, False, False],
        "eve": [False, False, False, False],
    }
    assert doubts == {}


def test_many_viewers_and_batches_keep_apart(world: World) -> None:
    world.database.execute("insert into members select n % 50, 'u' || n from generate_series(0, 299) n")
    rows = [row(number, number % 60, "x") for number in range(1200)]
    answers, doubts = world.visible(ask(), rows, *(f"u{number}" for number in range(100, 130)))
    assert doubts == {}
    for uid, found in answers.items():
        assert [index for index, seen in enumerate(found) if seen] == [
            index for index in range(1200) if index % 60 == int(uid[1:]) % 50
        ], uid


def test_claims_are_all_there_and_the_role_is_the_viewers(world: World) -> None:
    claims = (
        "current_user = current_setting('request.jwt.claim.role')"
        " and current_setting('request.jwt.claims')::json ->> 'sub' = owner and auth.uid() = owner"
        " and current_setting('transaction_read_only') = 'on'"
    )
    answers, _ = world.visible(ask(claims, "owner"), notes(), "ada", "q\"uo'te %s {}")
    assert answers == {"ada": [True, False, False, True], "q\"uo'te %s {}": [False] * 4}


def test_roles_in_turn_are_under_their_own_policies(world: World) -> None:
    other = f"{world.database.name}_other"
    world.database.execute(
        f"create role {other} bypassrls; create policy none on members to {world.role} using (false)"
    )
    world.database.execute(f"create policy hide on members as restrictive to {world.role} using (team <> 2)")
    everyone = ask("exists (select from public.members m where m.team = notes.team)")

    async def work(asked: Asking) -> None:
        for _ in range(10):
            verdicts = {
                viewer: [
                    asked.judge.ask(viewer, everyone, LONG_AGO, world.relation, note, is_old=False) for note in notes()
                ]
                for viewer in (world.viewer("ada"), Viewer(other, "{}"), world.viewer("bob"), Viewer("postgres", "{}"))
            }
            found = [await asked.until(each) for each in verdicts.values()]
            assert found == [
                [True, False, False, False], [True, True, False, False], [False] * 4, [True, True, False, False]
            ]  # fmt: skip

    try:
        asking(world.database.dsn, work, world.catalog)
    finally:
        world.database.execute(f"drop owned by {other}; drop role {other}")


def test_a_policy_that_is_altered_counts_at_once(world: World) -> None:
    async def work(asked: Asking) -> None:
        for limit in range(4):
            world.database.execute(
                f"drop policy own on members; create policy own on members using (uid = auth.uid() and team > {limit})"
            )
            found = await asked.visible(world.viewer("ada"), ask(), world.relation, notes())
            assert found == [limit < 1, limit < 2, False, False]
        world.database.execute("alter table members disable row level security; revoke select on members from public")
        assert await asked.visible(world.viewer("ada"), ask(), world.relation, notes()) == [False] * 4
        assert asked.counted() == {"policy_error": 4}

    asking(world.database.dsn, work, world.catalog)


def test_nothing_that_a_policy_sets_reaches_the_next_viewer(world: World) -> None:
    world.database.execute(
        "create function leave_something() returns bool language plpgsql as $$ declare seen text; begin"
        "  seen := coalesce(current_setting('app.seen', true), '') || current_setting('search_path') || current_user;"
        "  perform set_config('app.seen', auth.uid(), false), set_config('search_path', 'auth', false),"
        "    set_config('statement_timeout', '1ms', false), set_config('row_security', 'off', false),"
        "    set_config('role', 'none', false);"
        f"  return seen = '{world.role}'; end $$"
    )
    condition = ask("public.leave_something()")
    for _ in range(2):
        answers, doubts = world.visible(condition, [row(1, 1, "x")], *(f"u{number}" for number in range(20)))
        assert all(found == [True] for found in answers.values())
        assert doubts == {}


def test_a_row_that_raises_is_in_doubt_alone(world: World) -> None:
    rows = [row(number, number % 7, "x") for number in range(50)]
    with structlog.testing.capture_logs() as logged:
        answers, doubts = world.visible(ask("10 / team > 3"), rows, "ada", "bob")
    expected = [bool(number % 7) and 10 // (number % 7) > 3 for number in range(50)]
    assert answers == {"ada": expected, "bob": expected}
    assert doubts == {"policy_error": 2 * 8}
    told = [line for line in logged if line["event"] == POLICY_FAILED]
    assert [(line["error"], line["table"]) for line in told] == [("division by zero", "public.notes")]


@pytest.mark.parametrize(
    ("condition", "error", "repair"),
    [
        ("exists (select from public.closed)", "permission denied for table closed", "grant the right"),
        ("public.writes()", "cannot execute INSERT in a read-only transaction", "read-only"),
        ("public.careless()", 'relation "members" does not exist', "search_path"),
        ("public.gone()", "function public.gone() does not exist", "search_path"),
    ],
)
def test_a_policy_that_cannot_be_asked_leaves_all_rows_in_doubt(
    world: World, condition: str, error: str, repair: str
) -> None:
    world.database.execute(
        "create table closed (a int);"
        "create function writes() returns bool language plpgsql security definer"
        "  as $$ begin insert into public.closed values (1); return true; end $$;"
        "create function careless() returns bool language plpgsql"
        "  as $$ begin return exists (select from members); end $$"
    )
    with structlog.testing.capture_logs() as logged:
        answers, doubts = world.visible(ask(condition), notes(), "ada")
    assert (answers, doubts) == ({"ada": [False] * 4}, {"policy_error": 4})
    [told] = [line for line in logged if line["event"] == POLICY_FAILED]
    assert told["error"] == error
    assert repair in told["repair"]
    assert told["role"] == world.role


@pytest.mark.parametrize("role", ["none", "NONE", "", "nobody at all", "nul\0", "x" * 70])
def test_what_is_no_role_sees_nothing(world: World, role: str) -> None:
    async def work(asked: Asking) -> list[bool]:
        return await asked.visible(Viewer(role, "{}"), ask("true"), world.relation, notes())

    assert asking(world.database.dsn, work, world.catalog) == [False] * 4


def test_claims_that_are_no_text_see_nothing(world: World) -> None:
    async def work(asked: Asking) -> tuple[list[bool], list[bool]]:
        strange = Viewer(world.role, '{"sub": "a\\u0000da", "role": 7}')
        first = await asked.visible(strange, ask("auth.uid() is null"), world.relation, notes())
        broken = [Viewer(world.role, claims) for claims in ('{"sub": "ada\0"}', '{"sub": "\ud800"}')]
        return first, [
            seen for viewer in broken for seen in await asked.visible(viewer, ask("true"), world.relation, notes())
        ]

    assert asking(world.database.dsn, work, world.catalog) == ([True] * 4, [False] * 8)


def test_names_of_a_policy_are_looked_up_without_the_viewers_rights(world: World) -> None:
    world.database.execute(
        "create schema hidden; create function hidden.yes() returns bool language sql as 'select true'"
    )
    answers, doubts = world.visible(ask("hidden.yes()"), notes(), "ada", "bob")
    assert answers == {"ada": [True] * 4, "bob": [True] * 4}
    assert doubts == {}


def test_the_viewers_rights_to_names_do_where_the_daemon_has_none(world: World) -> None:
    daemon = f"{world.database.name}_daemon"
    world.database.execute(
        f"create role {daemon} login noinherit; grant {world.role} to {daemon}; create schema hidden;"
        "create function hidden.yes() returns bool language sql as 'select true';"
        f"grant usage on schema hidden to {world.role}"
    )
    rows = notes()

    async def work(asked: Asking) -> tuple[list[bool], dict[str, int]]:
        viewer = world.viewer("ada")
        assert await asked.visible(viewer, ask("hidden.yes()"), world.relation, rows) == [True] * 4
        return await asked.visible(viewer, ask(), world.relation, rows), asked.counted()

    dsn = world.database.cluster.dsn(world.database.name, daemon)
    try:
        assert asking(dsn, work, world.catalog) == ([True, True, False, False], {})
    finally:
        world.database.execute(f"drop role {daemon}")


def test_names_that_need_quotes_and_conditions_of_any_text(world: World) -> None:
    world.database.execute('create table "Odd ""t" ("row number" int, "a %s{}" text, "0" json)')
    relation, catalog = relation_of(world.database, 'Odd ""t')
    odd = Ask(
        "public", 'Odd "t',
        "\"row number\" = 1 and \"a %s{}\" like '%{0}\"''\\%' and (\"0\" ->> 'x') = '$1'"
        " and exists (select where \"Odd \"\"t\".\"row number\" = 1)",
        (("row number", "integer"), ("a %s{}", "text"), ("0", "json")),
    )  # fmt: skip
    good: Row = (b"1", b'"x{0}\\"\'%"', b'{"x": "$1"}')
    bad: Row = (b"1", b'"x"', b'{"x": "$1"}')

    async def work(asked: Asking) -> list[bool]:
        return await asked.visible(world.viewer("ada"), odd, relation, [good, bad])

    assert asking(world.database.dsn, work, catalog) == [True, False]


def test_a_condition_that_looks_at_no_column(world: World) -> None:
    constant = Ask("public", "notes", "exists (select from public.members)", ())
    answers, doubts = world.visible(constant, notes(), "ada", "eve")
    assert answers == {"ada": [True] * 4, "eve": [False] * 4}
    assert doubts == {}


def test_a_collation_of_a_column_counts(world: World) -> None:
    world.database.execute(
        "create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    )
    condition = Ask("public", "notes", "owner = 'ADA'", (("owner", "text collate public.nocase"),))
    answers, _ = world.visible(condition, notes(), "x")
    assert answers == {"x": [True, False, False, True]}


def test_cells_that_are_not_there_leave_the_row_in_doubt(world: World) -> None:
    async def work(asked: Asking) -> None:
        viewer, short = world.viewer("ada"), (b"1", None, b'"x"', None)
        condition = ask("team > 0 or owner = 'x'", "team", "owner")
        assert await asked.visible(viewer, condition, world.relation, [short]) == [False]
        assert await asked.visible(viewer, condition, world.relation, [short], is_old=True) == [False]
        assert await asked.visible(viewer, ask("owner = 'x'", "owner"), world.relation, [short]) == [True]
        narrow = relation_of(world.database, "notes", "id", "owner")[0]
        assert await asked.visible(viewer, condition, narrow, [(b"1", b'"x"')]) == [False]
        system = Ask("public", "notes", "true", (), problem="system_column")
        assert await asked.visible(viewer, system, world.relation, [short]) == [False]
        assert asked.counted() == {
            "unchanged_toast": 1, "key_only_old_row": 1, "absent_column": 1, "system_column": 1
        }  # fmt: skip
        assert len(asked.judge) == 0

    asking(world.database.dsn, work, world.catalog)


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        ("price is null", None),
        ("price > 5", None),
        ("owner = 'x' and price is null", False),
        ("owner = 'ada' or price > 5", True),
        ("coalesce(price, 0) = coalesce(price, 0)", True),
    ],
)
def test_a_null_that_may_be_no_number_is_judged_where_it_does_not_matter(
    world: World, condition: str, answer: bool | None
) -> None:
    rows = [row(1, 1, "ada", None), row(2, 1, "ada", 7), row(3, 1, "ada", None)]
    answers, doubts = world.visible(ask(condition, "owner", "price"), rows, "ada")
    assert answers["ada"][::2] == [bool(answer)] * 2
    assert doubts == ({"not_a_number": 2} if answer is None else {})


def test_a_hanging_policy_is_given_up_and_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "STATEMENT_SECONDS", 0.5)
    hanging = ask("(auth.uid() like 'fast%' or pg_sleep(3600) is null)")

    async def work(asked: Asking) -> None:
        slow = [
            asked.judge.ask(world.viewer(f"slow{number}"), hanging, LONG_AGO, world.relation, note, is_old=False)
            for number in range(10)
            for note in notes()
        ]
        fast = await asked.visible(world.viewer("ada"), ask(), world.relation, notes())
        assert fast == [True, True, False, False]
        assert any(verdict.answer is None for verdict in slow)
        assert await asked.until(slow) == [False] * 40
        assert await asked.visible(world.viewer("fast"), hanging, world.relation, notes()) == [True] * 4
        assert asked.counted() == {"policy_error": 40}

    asking(world.database.dsn, work, world.catalog)


def test_a_lock_is_waited_for_and_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "LOCK_SECONDS", 0.05)
    owner = world.database.connect(autocommit=False)

    async def work(asked: Asking) -> None:
        with owner.cursor() as cursor:
            cursor.execute("lock table members in access exclusive mode")
        locked = [
            asked.judge.ask(world.viewer(uid), ask(), LONG_AGO, world.relation, notes()[1], is_old=False)
            for uid in ("ada", "bob", "eve", "u1", "u2", "u3", "u4", "u5")
        ]
        free = await asked.visible(world.viewer("ada"), ask("team = 1"), world.relation, notes())
        assert free == [True, False, False, False]
        assert all(verdict.answer is None for verdict in locked)
        owner.rollback()
        assert await asked.until(locked) == [True, True, *[False] * 6]
        assert asked.counted() == {}

    asking(world.database.dsn, work, world.catalog)
    owner.close()


def begin(connection: psycopg2.extensions.connection) -> Transaction:
    """A transaction under way, as it will be decoded."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_current_xact_id()::text::int8 % (1::int8 << 32)")
        found = cursor.fetchone()
        assert found is not None
        return Transaction(xid=found[0], commit_lsn=Lsn(1), commit_at=0, changes=())


def test_rows_wait_until_their_transaction_can_be_seen(world: World) -> None:
    first, second = (world.database.connect(autocommit=False) for _ in range(2))
    early, late = begin(first), begin(second)
    with first.cursor() as cursor:
        cursor.execute("insert into members values (3, 'eve')")

    async def work(asked: Asking) -> None:
        def verdicts(transaction: Transaction) -> list[Verdict]:
            return [
                asked.judge.ask(world.viewer("eve"), ask(), transaction, world.relation, note, is_old=False)
                for note in notes()
            ]

        waiting, hung = verdicts(early), verdicts(late)
        assert await asked.visible(world.viewer("eve"), ask(), world.relation, notes()) == [False] * 4
        assert {verdict.answer for verdict in waiting + hung} == {None}
        first.commit()
        assert await asked.until(waiting) == [False, False, True, False]
        assert {verdict.answer for verdict in hung} == {None}
        second.commit()
        assert await asked.until(hung) == [False, False, True, False]

    asking(world.database.dsn, work, world.catalog)
    first.close()
    second.close()


def test_asked_twice_it_gives_the_same_verdict_while_it_is_due(world: World) -> None:
    async def main() -> None:
        database = Database(world.database.dsn, "judge")
        judge = Judge(database, world.catalog, Doubts())
        note = notes()[0]
        one, two = (
            judge.ask(world.viewer("ada"), condition, LONG_AGO, world.relation, note, is_old=False)
            for condition in (ask(), ask())
        )
        other = judge.ask(world.viewer("bob"), ask(), LONG_AGO, world.relation, note, is_old=False)
        assert one is two
        assert one is not other
        assert len(judge) == 2
        async with trio.open_nursery() as nursery:
            judge.on_answers = lambda: None if len(judge) else nursery.cancel_scope.cancel()
            nursery.start_soon(judge.run)
        assert (one.answer, other.answer) == (True, False)
        late = judge.ask(world.viewer("ada"), ask(), LONG_AGO, world.relation, note, is_old=False)
        assert late is not one
        assert late.answer is None

    run(main)


def test_a_database_that_is_away_is_waited_for(fragile: TestDatabase) -> None:
    fragile.execute(TABLES)
    fragile.execute("create role viewer")
    relation, catalog = relation_of(fragile, "notes")
    viewer = Viewer("viewer", '{"sub": "ada"}')

    async def work(asked: Asking) -> None:
        assert await asked.visible(viewer, ask(), relation, notes()) == [True, True, False, False]
        fragile.close()
        fragile.cluster.kill()
        verdicts = [asked.judge.ask(viewer, ask(), LONG_AGO, relation, note, is_old=False) for note in notes()]
        await trio.testing.wait_all_tasks_blocked()
        fragile.cluster.start()
        assert await asked.until(verdicts) == [True, True, False, False]
        assert asked.counted() == {}

    asking(fragile.dsn, work, catalog)
