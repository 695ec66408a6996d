"""Joins: what they are told, what they get, and that nothing of them stays behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tests.shell.joins_support import USER, Owner, Rig, World
from tests.support import run
from walstream.auth.tokens import Claims
from walstream.channel.effects import SUBSCRIBED, Refused
from walstream.model import Column
from walstream.shell.clients.joins import (
    ANSWER_SECONDS,
    DATABASE_AWAY,
    LOST,
    PATIENCE_SECONDS,
    RETRY_SECONDS,
)
from walstream.shell.database.access import REFRESH_SECONDS
from walstream.shell.health import ReaderState

ALL = b'{"event":"*","schema":"public","table":"things"}'


@asynccontextmanager
async def answering(rig: Rig) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.joins.run)
        yield
        nursery.cancel_scope.cancel()


async def answered() -> None:
    """Until nothing happens any more without time going on."""
    await wait_all_tasks_blocked()


def scene(main: Callable[[Rig], Awaitable[None]], world: World | None = None) -> Rig:
    """Run ``main`` while joins are answered, without anything lasting any time."""

    async def whole() -> Rig:
        rig = Rig(world)
        with rig.world.instead_of_postgresql():
            async with answering(rig):
                await main(rig)
        return rig

    return run(whole, autojump=True)


def test_a_join_gets_what_is_committed_after_it() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        await rig.commit_row()
        serial = rig.ask(owner, ALL)
        await answered()
        assert owner.accepted(serial).message == SUBSCRIBED
        commit = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [commit]
        assert owner.frames[0].ids == owner.accepted(serial).ids

    scene(main)


def test_a_join_without_changes_needs_no_database() -> None:
    async def main(rig: Rig) -> None:
        rig.world.is_away = True
        rig.reader = "standby"
        owner = Owner(rig)
        serial = rig.ask(owner)
        assert owner.accepted(serial).ids == ()
        assert rig.world.trips == 0

    scene(main)


def test_a_transaction_that_comes_between_snapshot_and_answer_is_delivered_once() -> None:
    async def main(rig: Rig) -> None:
        rig.world.seconds = 0.5
        owner = Owner(rig)
        rig.ask(owner, ALL)
        await trio.sleep(0.25)  # the snapshot is taken, the answer on its way
        commit = await rig.commit_row()
        await trio.sleep(1.5)
        after = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [commit, after]

    scene(main)


def test_who_is_not_allowed_is_told_and_gets_nothing() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        rig.world.granted.clear()
        serial = rig.ask(owner, ALL)
        await answered()
        outcome = owner.accepted(serial)
        assert (outcome.status, outcome.ids) == ("error", (1,))
        assert "permission denied for table public.things as reader" in outcome.message
        await rig.commit_row()
        assert owner.frames == []
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (None, "does not exist"),
        (USER._replace(superuser=True), "is not open to clients"),
        (USER._replace(member=False), "is not open to clients"),
    ],
)
def test_a_role_that_is_not_for_clients_is_refused(facts: Any, words: str) -> None:
    async def main(rig: Rig) -> None:
        rig.world.roles = {} if facts is None else {"reader": facts}
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        assert words in owner.accepted(serial).message
        await rig.commit_row()
        assert owner.frames == []

    scene(main)


def test_one_bad_item_spoils_the_join_and_no_other() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        bad = rig.ask(owner, ALL, b'{"event":"*","schema":"public","table":"ghosts"}', topic="bad")
        good = rig.ask(owner, ALL, topic="good")
        await answered()
        assert "Please check Realtime is enabled" in owner.accepted(bad).message
        assert owner.accepted(good).status == "ok"
        assert rig.world.trips == 1, "both were asked for together"

    scene(main)


def test_who_leaves_as_the_reply_goes_out_gets_nothing() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        owner.on_ready = owner.leave
        rig.ask(owner, ALL)
        await answered()
        await rig.commit_row()
        assert owner.frames == []
        assert rig.is_clean

    scene(main)


def test_made_up_names_leave_nothing_behind() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        for number in range(300):
            serial = rig.ask(owner, b'{"event":"*","schema":"public","table":"ghost%d"}' % number)
            await answered()
            owner.leave(serial)
        assert not [name for name in rig.catalog.relations if name[1].startswith("ghost")]
        assert rig.is_clean

    scene(main)


# -- a database that is away


def test_without_a_database_the_reply_goes_out_and_the_changes_come_later() -> None:
    async def main(rig: Rig) -> None:
        rig.world.is_away = True
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        outcome = owner.accepted(serial)
        assert (outcome.status, outcome.message) == ("error", DATABASE_AWAY)
        await rig.commit_row()
        rig.world.is_away = False
        await trio.sleep(RETRY_SECONDS * 2)
        assert owner.told[serial] == [("ok", SUBSCRIBED)]
        commit = await rig.commit_row()
        assert [(frame.commit, frame.ids) for frame in owner.frames] == [(commit, outcome.ids)]
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_a_slow_database_is_waited_for_once_the_reply_is_out() -> None:
    async def main(rig: Rig) -> None:
        rig.world.seconds = (ANSWER_SECONDS + PATIENCE_SECONDS) / 2
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await trio.sleep(ANSWER_SECONDS + 0.1)
        assert owner.accepted(serial).message == DATABASE_AWAY
        await trio.sleep(PATIENCE_SECONDS + RETRY_SECONDS)
        assert owner.told[serial] == [("ok", SUBSCRIBED)]

    scene(main)


def test_a_client_that_waits_is_not_answered_before_it_is_subscribed() -> None:
    async def main(rig: Rig) -> None:
        rig.world.is_away = True
        owner = Owner(rig)
        serial = rig.ask(owner, ALL, wait=True)
        await trio.sleep(5)
        assert serial not in owner.outcomes
        rig.world.is_away = False
        await trio.sleep(RETRY_SECONDS * 2)
        assert owner.accepted(serial).message == SUBSCRIBED

    scene(main)


def test_nobody_is_subscribed_while_nothing_streams() -> None:
    """There may be no slot: what is committed until there is one would be lost."""

    async def main(rig: Rig) -> None:
        rig.reader = "retrying"
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await trio.sleep(ANSWER_SECONDS / 2)
        assert serial not in owner.outcomes
        await trio.sleep(ANSWER_SECONDS)
        assert owner.accepted(serial).status == "error"
        assert rig.world.trips == 0
        rig.reader = "streaming"
        await trio.sleep(RETRY_SECONDS * 2)
        assert owner.told[serial] == [("ok", SUBSCRIBED)]

    scene(main)


def test_a_standby_sends_its_clients_away() -> None:
    async def main(rig: Rig) -> None:
        rig.reader = "standby"
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        outcome = owner.outcomes[serial]
        assert isinstance(outcome, Refused)
        assert outcome.reason.startswith("RealtimeRestarting: ")
        assert rig.is_clean

    scene(main)


def test_a_filter_that_means_something_else_later_keeps_the_promised_id() -> None:
    """``now`` of yesterday is another binding; each client goes on knowing its own by the id that it was told."""

    async def main(rig: Rig) -> None:
        rig.world.is_away = True
        rig.world.table("times", columns=(Column("n", 23, "int4"), Column("at", 1184, "timestamptz")))
        item = b'{"event":"*","schema":"public","table":"times","filter":"at=gt.now"}'
        first, second = Owner(rig), Owner(rig)
        one = rig.ask(first, item)
        await answered()
        rig.world.is_away = False
        rig.world.casts = {(1184, "now"): b'"2026-01-01T00:00:00+00:00"'}
        await trio.sleep(RETRY_SECONDS * 2)
        rig.world.is_away = True
        two = rig.ask(second, item)
        await answered()
        rig.world.is_away = False
        rig.world.casts = {(1184, "now"): b'"2026-01-02T00:00:00+00:00"'}
        await trio.sleep(RETRY_SECONDS * 2)
        assert first.told[one] == second.told[two] == [("ok", SUBSCRIBED)]
        assert len(rig.router) == 2
        first.leave(one)
        second.leave(two)
        assert rig.is_clean

    scene(main)


# -- tokens


def test_another_role_goes_on_from_the_same_change() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        first = await rig.commit_row()
        rig.joins.refreshed(owner, serial, Claims("writer"))
        second = await rig.commit_row()
        await answered()
        third = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [first, second, third]
        assert set(rig.access.roles) == {"writer"}

    scene(main)


def test_a_role_that_may_not_gets_no_more_until_another_token_comes() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        rig.world.granted.discard(("writer", "public", "things"))
        rig.joins.refreshed(owner, serial, Claims("writer"))
        await answered()
        assert owner.told[serial][-1][0] == "error"
        await rig.commit_row()
        assert owner.frames == []
        rig.joins.refreshed(owner, serial, Claims("reader"))
        await answered()
        assert owner.told[serial][-1] == ("ok", SUBSCRIBED)
        commit = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [commit]
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_a_token_that_comes_back_leaves_the_role_as_it_was() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        rig.joins.refreshed(owner, serial, Claims("writer"))
        rig.joins.refreshed(owner, serial, Claims("reader"))
        await answered()
        assert set(rig.access.roles) == {"reader"}

    scene(main)


def test_a_token_that_comes_during_the_trip_is_judged_by_the_next_one() -> None:
    async def main(rig: Rig) -> None:
        rig.world.is_away = True
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        rig.world.is_away = False

        def refresh() -> None:
            rig.world.on_answer = lambda: None
            rig.joins.refreshed(owner, serial, Claims("writer"))

        rig.world.on_answer = refresh
        await trio.sleep(RETRY_SECONDS * 3)
        assert owner.told[serial] == [("ok", SUBSCRIBED)]
        assert set(rig.access.roles) == {"writer"}

    scene(main)


# -- rights


def test_a_right_that_is_revoked_ends_delivery_and_is_told() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        rig.world.granted.clear()
        await trio.sleep(REFRESH_SECONDS + 0.1)
        assert owner.told[serial] == [("error", LOST)]
        await rig.commit_row()
        assert owner.frames == []
        rig.world.table("things")  # granted again: with another OID as well
        await trio.sleep(REFRESH_SECONDS + 0.1)
        commit = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [commit]

    scene(main)


def test_an_answer_that_is_older_does_not_undo_a_newer_one() -> None:
    """A right that was granted while all rights were asked for is there for who was told that it is subscribed."""

    async def main(rig: Rig) -> None:
        rig.ask(Owner(rig), ALL, role="writer")
        await answered()
        rig.world.granted.discard(("reader", "public", "things"))
        other = Owner(rig)
        rig.world.table("others")
        rig.ask(other, b'{"event":"*","schema":"public","table":"others"}', role="reader", topic="o")
        await answered()
        rig.world.seconds = 1.5
        await trio.sleep(REFRESH_SECONDS + 0.5)  # the refresh has asked, and not been answered
        rig.world.seconds = 0.0
        rig.world.granted.add(("reader", "public", "things"))
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await trio.sleep(1.5)
        assert owner.accepted(serial).status == "ok"
        commit = await rig.commit_row()
        assert [frame.commit for frame in owner.frames] == [commit]
        await trio.sleep(1)
        await rig.commit_row()
        assert len(owner.frames) == 2

    scene(main)


def test_who_leaves_during_the_refresh_stays_away() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await answered()
        rig.world.seconds = 1.0
        await trio.sleep(REFRESH_SECONDS + 0.5)
        owner.leave(serial)
        await trio.sleep(2)
        assert rig.is_clean

    scene(main)


def test_a_refresh_that_hangs_is_given_up() -> None:
    async def main(rig: Rig) -> None:
        owner = Owner(rig)
        rig.ask(owner, ALL)
        await answered()
        rig.world.seconds = 1e9
        await trio.sleep(REFRESH_SECONDS + PATIENCE_SECONDS + 0.5)
        rig.world.seconds = 0.0
        serial = rig.ask(owner, ALL, topic="u")
        await trio.sleep(0.1)
        assert owner.accepted(serial).status == "ok"

    scene(main)


def test_a_wildcard_join_gets_what_its_role_may_read() -> None:
    async def main(rig: Rig) -> None:
        rig.world.table("open")
        rig.world.table("closed", roles=["writer"])
        owner = Owner(rig)
        serial = rig.ask(owner, b'{"event":"*","schema":"public"}')
        await answered()
        assert owner.accepted(serial).status == "ok"
        seen = [await rig.commit_row("open"), await rig.commit_row("things")]
        await rig.commit_row("closed")
        assert [frame.commit for frame in owner.frames] == seen

    scene(main)


def test_the_publication_is_settled_for_the_very_tables() -> None:
    async def main(rig: Rig) -> None:
        rig.ask(Owner(rig), ALL)
        await answered()
        assert rig.world.settled == [(rig.world.tables["public", "things"].oid,)]

    scene(main)


# -- everything in any order

ITEMS = (
    (ALL,),
    (ALL, b'{"event":"INSERT","schema":"public","table":"others","filter":"n=gt.0"}'),
    (b'{"event":"*","schema":"public"}',),
    (b'{"event":"*","schema":"public","table":"ghosts"}',),
    (b'{"event":"*","schema":"public","table":"things","filter":"nope=eq.1"}',),
    (b'{"event":"*","schema":"public","table":"things","filter":"n"}',),
    (),
)
ROLES = ("reader", "writer", "stranger")

steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 2), st.sampled_from(ITEMS), st.sampled_from(ROLES), st.booleans()),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("refresh"), st.integers(0, 30), st.sampled_from(ROLES)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("reader"), st.sampled_from(["streaming", "retrying", "standby"])),
    st.tuples(st.just("slow"), st.sampled_from([0.0, 0.7, 3.0])),
    st.tuples(st.just("grant"), st.sampled_from(ROLES), st.sampled_from(["things", "others"]), st.booleans()),
    st.tuples(st.just("row"), st.sampled_from(["things", "others"])),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.01, 0.5, 1.1, 2.5, 6.0])),
    st.tuples(st.just("leave_when_ready"), st.integers(0, 2)),
)


class Play:
    """What clients, tokens, PostgreSQL and the reader may do."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.owners = [Owner(rig) for _ in range(3)]
        self.asked: list[tuple[Owner, int]] = []

    async def ask(self, number: int, items: tuple[bytes, ...], role: str, wait: bool) -> None:
        owner = self.owners[number]
        self.asked.append((owner, self.rig.ask(owner, *items, role=role, wait=wait)))

    async def leave(self, index: int) -> None:
        for owner, serial in self.asked[index : index + 1]:
            owner.leave(serial)

    async def refresh(self, index: int, role: str) -> None:
        for owner, serial in self.asked[index : index + 1]:
            if serial in owner.joined:
                self.rig.joins.refreshed(owner, serial, Claims(role))

    async def away(self, is_away: bool) -> None:
        self.rig.world.is_away = is_away

    async def reader(self, state: ReaderState) -> None:
        self.rig.reader = state

    async def slow(self, seconds: float) -> None:
        self.rig.world.seconds = seconds

    async def grant(self, role: str, table: str, is_granted: bool) -> None:
        granted = self.rig.world.granted
        (granted.add if is_granted else granted.discard)((role, "public", table))

    async def row(self, table: str) -> None:
        await self.rig.commit_row(table)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def leave_when_ready(self, number: int) -> None:
        self.owners[number].on_ready = self.owners[number].leave

    async def end(self) -> None:
        for owner in self.owners:
            owner.on_ready = lambda serial: None
        await self.away(False)
        await self.slow(0.0)
        await self.reader("streaming")
        await trio.sleep(30)


@given(st.lists(steps, max_size=30))
@settings(max_examples=150)
def test_nothing_is_left_of_joins_that_have_gone(plan: list[tuple[Any, ...]]) -> None:
    async def main(rig: Rig) -> None:
        play = Play(rig)
        for name, *values in plan:
            await getattr(play, name)(*values)
        await play.end()
        for owner, serial in play.asked:
            assert serial not in owner.present or serial in owner.outcomes, "never answered"
        for owner in play.owners:
            commits = [(frame.topic, frame.commit) for frame in owner.frames]
            assert len(commits) == len(set(commits)), "a change came twice"
        for owner, serial in play.asked:
            owner.leave(serial)
        await answered()
        assert rig.is_clean

    scene(main, World("reader", "writer", tables=("things", "others")))


@given(st.lists(steps, max_size=30))
@settings(max_examples=100)
def test_who_was_told_last_that_it_is_subscribed_is(plan: list[tuple[Any, ...]]) -> None:
    async def main(rig: Rig) -> None:
        play = Play(rig)
        for name, *values in plan:
            await getattr(play, name)(*values)
        await play.end()
        for role in ROLES:
            await play.grant(role, "things", True)
            await play.grant(role, "others", True)
        await play.sleep(REFRESH_SECONDS * 2)
        commit = await rig.commit_row()
        for owner in play.owners:
            wanted = sorted(
                f"realtime:t{serial}"
                for mine, serial in play.asked
                if mine is owner and serial in owner.joined and owner.is_subscribed(serial)
            )
            assert sorted(frame.topic for frame in owner.frames if frame.commit == commit) == wanted

    scene(main, World("reader", "writer", tables=("things", "others")))
