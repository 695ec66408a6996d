"""Who may be in a room: asked of a database that answers, hangs or is away, and followed through the WAL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.shell.channels_support import STARTED, FakeRows, Guest, change, channel, claims, member, transaction
from tests.support import run
from walstream.channel.permission import UNREACHED
from walstream.rooms import RoomKey
from walstream.shell.channels import memberships
from walstream.shell.channels.directory import (
    CHANGED,
    DELETED,
    FORBIDDEN,
    LOST,
    UNABLE,
    Directory,
)
from walstream.shell.channels.memberships import IDLE_SECONDS
from walstream.shell.channels.seats import Seat
from walstream.shell.database.channel_rows import Rows

GENERAL = RoomKey("general")
PRIVATE = channel(type="private")
SERVICE = claims(role="service_role")


def lost(topic: str = "general") -> tuple[str, str]:
    return LOST[0], LOST[1].format(topic)


def serving(rows: FakeRows, test: Callable[[Directory], Awaitable[None]]) -> None:
    """Run ``test`` beside a directory that has loaded what there is."""

    async def main() -> None:
        directory = Directory(cast("Rows", rows))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run)
            await settle()
            await test(directory)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


async def settle(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


def allowed(guest: Guest) -> bool:
    return guest.seat.may_send


def role(guest: Guest) -> str | None:
    return guest.seat.role


def apply(directory: Directory, xid: int, *changes: Any) -> None:
    directory.applied(transaction(xid, *changes), STARTED)


def test_an_open_room_needs_no_database() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(RoomKey("lobby"), claims("ann"))
        assert (guest.seat.room, guest.seat.role, guest.seat.may_send) == (RoomKey("lobby"), None, True)

    rows = FakeRows()
    rows.is_away = True
    serving(rows, test)


def test_a_private_room_without_a_channel_is_for_the_service_alone() -> None:
    async def test(directory: Directory) -> None:
        guest, service = Guest(directory), Guest(directory)
        guest.ask(RoomKey("lobby", private=True), claims("ann"))
        service.ask(RoomKey("lobby", private=True), SERVICE)
        await settle()
        assert guest.answers == [FORBIDDEN.format("lobby")]
        assert service.seat.role == "service"
        assert service.seat.may_send
        assert service.seat.may_administer

    serving(FakeRows(), test)


def test_a_channel_is_what_its_type_says_whatever_the_join_says() -> None:
    async def test(directory: Directory) -> None:
        member_, stranger, nobody = Guest(directory), Guest(directory), Guest(directory)
        member_.ask(GENERAL, claims("ann"))
        stranger.ask(GENERAL, claims("bob"))
        nobody.ask(GENERAL, claims())
        await settle()
        assert member_.seat.room == RoomKey("general", private=True)
        assert member_.seat.role == "moderator"
        assert member_.seat.may_moderate
        assert not member_.seat.may_administer
        assert stranger.answers == nobody.answers == [FORBIDDEN.format("general")]

    serving(FakeRows([PRIVATE], [member("ann", role="moderator")]), test)


def test_all_joins_of_a_tick_are_one_question_and_an_answer_is_kept_while_it_is_needed() -> None:
    rows = FakeRows([channel()], [member("u1")])

    async def test(directory: Directory) -> None:
        guests = [Guest(directory) for _ in range(50)]
        for number, guest in enumerate(guests):
            guest.ask(GENERAL, claims(f"u{number % 5}"))
        await settle()
        assert [guest.seat.role for guest in guests[:3]] == [None, "member", None]
        assert rows.asked == [{("id-general", f"u{number}") for number in range(5)}]
        again = Guest(directory)
        again.ask(GENERAL, claims("u1"))
        assert again.seat.role == "member"
        for guest in [*guests, again]:
            directory.leave(guest.seat)
            directory.leave(guest.seat)
        Guest(directory).ask(GENERAL, claims("u1"))
        await settle()
        assert len(rows.asked) == 1
        for guest in [Guest(directory), Guest(directory)]:
            await settle(IDLE_SECONDS + 1)
            guest.ask(GENERAL, claims("u2"))
            await settle()
            directory.leave(guest.seat)
        assert rows.asked[1:] == [{("id-general", "u2")}] * 2


def test_what_is_known_of_nobody_in_particular_is_bounded_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memberships, "IDLE_MAX", 3)
    rows = FakeRows([channel()])

    async def test(directory: Directory) -> None:
        for number in range(10):
            guest = Guest(directory)
            guest.ask(GENERAL, claims(f"u{number}"))
            await settle()
            directory.leave(guest.seat)
        assert len(directory._memberships) == 3
        known = next(user for _, user in directory._memberships)
        apply(directory, 200, change("channel_members", member(known)))
        guest = Guest(directory)
        guest.ask(GENERAL, claims(known))
        assert guest.seat.role == "member"
        directory.leave(guest.seat)
        rows.member_rows.clear()
        directory.changed()  # whatever is known may be wrong
        refused = Guest(directory)
        refused.ask(GENERAL, claims(known))
        await settle()
        assert rows.asked[-1] == {("id-general", known)}

    serving(rows, test)


def test_who_was_refused_and_made_a_member_comes_in_before_the_wal_says_so() -> None:
    rows = FakeRows([PRIVATE])

    async def test(directory: Directory) -> None:
        refused, let_in = Guest(directory), Guest(directory)
        refused.ask(GENERAL, claims("ann"))
        await settle()
        assert refused.answers == [FORBIDDEN.format("general")]
        rows.member_rows.append(member("ann"))
        let_in.ask(GENERAL, claims("ann"))
        await settle()
        assert let_in.seat.role == "member"

    serving(rows, test)


def test_all_joins_of_a_tick_are_one_question() -> None:
    rows = FakeRows([channel()], [member("u1")])

    async def test(directory: Directory) -> None:
        for number in range(20):
            Guest(directory).ask(GENERAL, claims(f"u{number}"))
        await settle()
        assert len(rows.asked) == 1

    serving(rows, test)


def test_who_is_muted_may_not_send_on_a_public_channel_either() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        assert not allowed(guest)
        apply(directory, 200, change("channel_members", member("ann"), member("ann", muted=True)))
        assert allowed(guest)
        apply(directory, 201, change("channel_members", None, member("ann")))
        assert allowed(guest)
        assert guest.endings == []

    serving(FakeRows([channel()], [member("ann", muted=True)]), test)


@pytest.mark.parametrize("truncated", [False, True])
def test_a_membership_that_ends_takes_the_seat_on_a_private_channel(truncated: bool) -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        apply(directory, 200, change("channel_members", old=None if truncated else member("ann"), truncate=truncated))
        assert guest.endings == [lost()]
        assert guest.seat.is_left

    serving(FakeRows([PRIVATE], [member("ann")]), test)


def test_a_membership_that_a_transaction_takes_and_gives_again_keeps_its_seat() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        apply(
            directory, 200, change("channel_members", None, member("ann")),
            change("channel_members", member("ann", role="admin")),
        )  # fmt: skip
        assert guest.endings == []
        assert role(guest) == "admin"

    serving(FakeRows([PRIVATE], [member("ann")]), test)


def test_what_the_answer_knows_already_is_not_applied_again() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        apply(directory, 50, change("channel_members", None, member("ann")))
        apply(directory, 51, change("channels", None, PRIVATE))
        assert guest.endings == []

    serving(FakeRows([PRIVATE], [member("ann")]), test)


def test_what_the_wal_brings_while_an_answer_is_under_way_counts() -> None:
    rows = FakeRows([PRIVATE], [member("ann")])

    async def test(directory: Directory) -> None:
        rows.before.append(lambda: apply(directory, 150, change("channel_members", None, member("ann"))))
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        assert guest.answers == [FORBIDDEN.format("general")]

    serving(rows, test)


def test_what_the_wal_brought_before_it_became_visible_counts() -> None:
    rows = FakeRows([], [])

    async def test(directory: Directory) -> None:
        apply(directory, 150, change("channels", PRIVATE), change("channel_members", member("ann")))
        directory.changed()
        await settle()
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        assert role(guest) == "member"

    serving(rows, test)


def test_more_changes_than_are_kept_make_it_load_again() -> None:
    rows = FakeRows([channel()])

    async def test(directory: Directory) -> None:
        rows.channel_rows = [channel("other")]
        apply(directory, 200, *[change("channel_members", member(f"u{n}")) for n in range(5001)])
        await settle()
        assert directory.find("other") is not None
        assert directory.find("general") is None

    serving(rows, test)


def test_a_channel_that_goes_or_becomes_another_ends_its_seats() -> None:
    async def test(directory: Directory) -> None:
        gone, turned, renamed = Guest(directory), Guest(directory), Guest(directory)
        gone.ask(RoomKey("gone"), claims("ann"))
        turned.ask(RoomKey("turned"), claims("ann"))
        renamed.ask(RoomKey("renamed"), claims("ann"))
        await settle()
        apply(
            directory, 200,
            change("channels", None, channel("gone")),
            change("channels", channel("turned", type="private"), channel("turned")),
            change("channels", {**channel("renamed"), "slug": "new"}, channel("renamed")),
        )  # fmt: skip
        assert gone.endings == [DELETED]
        assert turned.endings == [CHANGED]
        assert renamed.endings == [CHANGED]
        assert directory.find("new") is not None

    serving(FakeRows([channel("gone"), channel("turned"), channel("renamed")]), test)


def test_settings_of_a_channel_reach_its_seats() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        # The WAL leaves out a long value that an UPDATE does not change.
        new = {name: value for name, value in channel(persist=False).items() if name != "metadata"}
        apply(directory, 200, change("channels", new, channel(metadata={"max_message_bytes": 5})))
        found = guest.seat.channel
        assert found is not None
        assert (found.persist, found.max_message_bytes) == (False, 5)
        assert guest.endings == []

    serving(FakeRows([channel()]), test)


def test_a_room_that_becomes_a_channel_is_judged() -> None:
    async def test(directory: Directory) -> None:
        public, private = Guest(directory), Guest(directory)
        public.ask(RoomKey("public"), claims("ann"))
        private.ask(RoomKey("private"), claims("ann"))
        apply(
            directory,
            200,
            change("channels", channel("public")),
            change("channels", channel("private", type="private")),
        )
        assert private.endings == [CHANGED]
        await settle()
        assert public.seat.channel is not None
        assert public.endings == []

    serving(FakeRows(), test)


def test_truncating_channels_ends_all_seats() -> None:
    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        apply(directory, 200, change("channels", truncate=True))
        assert guest.endings == [DELETED]

    serving(FakeRows([channel()]), test)


def test_before_the_channels_are_known_topics_are_open_and_judged_when_they_are() -> None:
    rows = FakeRows([PRIVATE, channel("public")], [])
    rows.is_away = True

    async def test(directory: Directory) -> None:
        private, public, service = Guest(directory), Guest(directory), Guest(directory)
        private.ask(GENERAL, claims("ann"))
        public.ask(RoomKey("public"), claims("ann"))
        service.ask(RoomKey("other", private=True), SERVICE)
        assert private.seat.room == GENERAL
        await settle()
        assert service.answers == [UNABLE]
        rows.is_away = False
        await settle(1.1)
        assert private.endings == [CHANGED]
        assert public.seat.channel is not None
        assert directory.is_loaded

    serving(rows, test)


@pytest.mark.parametrize("hangs", [False, True])
def test_while_the_database_is_away_public_channels_let_in_and_private_ones_do_not(hangs: bool) -> None:
    rows = FakeRows([PRIVATE, channel("public")], [member("ann", "public", muted=True)])

    async def test(directory: Directory) -> None:
        rows.hangs, rows.is_away = hangs, not hangs
        private, public = Guest(directory), Guest(directory)
        private.ask(GENERAL, claims("ann"))
        public.ask(RoomKey("public"), claims("ann"))
        await settle(2.0 if hangs else 0.0)
        assert private.answers == [UNABLE]
        assert public.seat.may_send
        rows.hangs = rows.is_away = False
        await settle(3.1)
        assert not public.seat.may_send

    serving(rows, test)


def test_another_persons_token_is_judged_again() -> None:
    rows = FakeRows([PRIVATE], [member("ann", role="admin"), member("bob")])

    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        directory.refreshed(guest.seat, claims("ann"))
        assert role(guest) == "admin"
        directory.refreshed(guest.seat, claims("bob"))
        assert not allowed(guest)  # until it is known
        await settle()
        assert role(guest) == "member"
        directory.refreshed(guest.seat, claims("eve"))
        await settle()
        assert guest.endings == [lost()]

    serving(rows, test)


def test_another_persons_token_ends_the_seat_where_nobody_can_be_asked() -> None:
    rows = FakeRows([PRIVATE], [member("ann")])

    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        rows.is_away = True
        directory.refreshed(guest.seat, claims("bob"))
        await settle()
        assert guest.endings == [UNREACHED]

    serving(rows, test)


def test_changed_loads_memberships_again() -> None:
    rows = FakeRows([PRIVATE], [member("ann")])

    async def test(directory: Directory) -> None:
        guest = Guest(directory)
        guest.ask(GENERAL, claims("ann"))
        await settle()
        rows.member_rows.clear()
        directory.changed()
        await settle()
        assert guest.endings == [lost()]

    serving(rows, test)


@given(st.lists(st.sampled_from(["insert", "mute", "delete", "lag", "ask"]), max_size=12))
def test_a_seat_is_what_the_newest_row_says_whatever_arrives_when(steps: list[str]) -> None:
    """The WAL may trail behind what the database answers, by any number of transactions."""
    rows = FakeRows([channel()])

    async def test(directory: Directory) -> None:
        trailing: list[tuple[int, Any]] = []
        guests = []
        for step in steps:
            now = rows.member_rows[0] if rows.member_rows else None
            new = {"insert": member("ann"), "mute": member("ann", muted=True), "delete": None}.get(step, now)
            if step == "ask":
                guest = Guest(directory)
                guest.ask(GENERAL, claims("ann"))
                await settle()
                guests.append(guest)
            elif step == "lag" and trailing:
                apply(directory, *trailing.pop(0))
            elif new is not now:
                trailing.append((rows.xid, change("channel_members", new, now)))
                rows.member_rows = [new] if new else []
                rows.xid += 1
        for late in trailing:
            apply(directory, *late)
        expected = "member" if rows.member_rows else None
        muted = bool(rows.member_rows and rows.member_rows[0]["muted"])
        assert [(guest.seat.role, guest.seat.muted) for guest in guests] == [(expected, muted)] * len(guests)

    serving(rows, test)


@pytest.mark.parametrize("answer_comes", [False, True])
def test_who_stops_waiting_leaves_no_seat(answer_comes: bool) -> None:
    rows = FakeRows([channel()])

    async def test(directory: Directory) -> None:
        assert isinstance(await directory.seat(Seat(RoomKey("lobby"), claims("ann"))), Seat)
        rows.hangs = not answer_comes
        with trio.move_on_after(0 if answer_comes else 0.5):
            await directory.seat(Seat(GENERAL, claims("ann")))
        rows.hangs = False
        await settle(3)
        assert list(directory._topics) == ["lobby"]

    serving(rows, test)
