"""Private rooms by policies, beside memberships: who comes in, what they may there, and when they have to leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import trio
import trio.testing

from tests.shell.channels_support import (
    STARTED,
    FakePolicies,
    FakeRows,
    Guest,
    change,
    channel,
    claims,
    member,
    transaction,
)
from tests.support import run
from walstream.auth.tokens import Claims
from walstream.channel.permission import (
    CANCELED,
    POLICY_ERROR,
    READS_ALL,
    READS_NOTHING,
    UNREACHED,
    WRITES_NOTHING,
    Answer,
    Question,
    Reading,
    Trouble,
    Writing,
    nothing,
)
from walstream.rooms import RoomKey
from walstream.shell.channels.directory import FORBIDDEN, LOST, PRIVATE_ONLY, Directory
from walstream.shell.channels.seats import Seat
from walstream.shell.database.channel_rows import Rows

LOBBY = RoomKey("lobby", private=True)
GENERAL = RoomKey("general", private=True)
PRIVATE = channel(type="private")
LISTENS, WATCHES = Reading(True, False), Reading(False, True)
SENDS = Writing(True, False, False)


def ann_reads(question: Question) -> Reading | Writing:
    if question.writes:
        return SENDS if question.sub == "ann" else WRITES_NOTHING
    return LISTENS if question.sub == "ann" else READS_NOTHING


def always(answer: Answer) -> Callable[[Question], Answer]:
    return lambda question: answer


def lost(topic: str = "general") -> tuple[str, str]:
    return LOST[0], LOST[1].format(topic)


def serving(
    rows: FakeRows, policies: FakePolicies, test: Callable[[Directory], Awaitable[None]], *, private_only: bool = False
) -> None:
    async def main() -> None:
        directory = Directory(cast("Rows", rows), policies, private_only=private_only)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run)
            await settle()
            await test(directory)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


async def settle(seconds: float = 0.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def asked(directory: Directory, room: RoomKey, who: Claims) -> Guest:
    guest = Guest(directory)
    guest.ask(room, who)
    await settle()
    return guest


def test_policies_alone_decide_about_a_private_topic_that_is_no_channel() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann, bob = await asked(directory, LOBBY, claims("ann")), await asked(directory, LOBBY, claims("bob"))
        seat = ann.seat
        assert (seat.room, seat.role, seat.reading, seat.writing) == (LOBBY, None, LISTENS, None)
        assert bob.answers == [FORBIDDEN.format("lobby")]
        service = await asked(directory, LOBBY, claims("bob", role="service_role"))
        assert service.seat.role == "service"
        assert service.seat.reading == READS_ALL
        assert [question.sub for question in policies.asked] == ["ann", "bob"]

    serving(FakeRows(), policies, test)


def test_members_come_in_by_their_rank_and_others_by_policies() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        bob, ann = await asked(directory, GENERAL, claims("bob")), await asked(directory, GENERAL, claims("ann"))
        assert (bob.seat.role, bob.seat.reading) == ("moderator", READS_ALL)
        assert bob.seat.may_send
        assert bob.seat.may_store
        assert (ann.seat.role, ann.seat.reading) == (None, LISTENS)
        assert not ann.seat.may_send
        assert not ann.seat.may_moderate
        assert [(question.sub, question.channel_id) for question in policies.asked] == [("ann", "id-general")]

    serving(FakeRows([PRIVATE], [member("bob", role="moderator")]), policies, test)


def test_public_rooms_ask_no_policies() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        for room in (RoomKey("lobby"), RoomKey("general"), GENERAL):
            assert (await asked(directory, room, claims("bob"))).seat.may_send
        assert policies.asked == []

    serving(FakeRows([channel()]), policies, test)


def test_what_may_be_written_is_asked_when_it_is_needed() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        seat = (await asked(directory, LOBBY, claims("ann"))).seat
        codes: list[str] = []
        directory.ask_writing(seat, codes.append)
        assert codes == [""]
        assert (seat.may_send, seat.may_track, seat.may_store) == (True, False, False)
        for trouble, code in (
            (UNREACHED, "unable_to_connect_to_project"),
            (CANCELED, "query_canceled"),
            (Trouble(POLICY_ERROR, "?"), "rls_policy_error"),
        ):
            policies.says = always(trouble)
            directory.ask_writing(seat, codes.append)
            assert codes[-1] == code

    serving(FakeRows(), policies, test)


def test_who_sends_by_http_needs_no_right_to_listen() -> None:
    def says(question: Question) -> Writing | Reading:
        return SENDS if question.writes else READS_NOTHING

    async def test(directory: Directory) -> None:
        seat = await directory.seat(Seat(LOBBY, claims("ann"), headers='{"x-door":"1"}'), writes=True)
        assert isinstance(seat, Seat)
        assert seat.may_send
        assert seat.reading == READS_NOTHING
        directory.leave(seat)

    policies = FakePolicies(says)
    serving(FakeRows(), policies, test)
    assert [question.headers for question in policies.asked] == ['{"x-door":"1"}']


def test_every_new_token_is_judged_again_and_what_is_lost_ends_the_seat() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann = await asked(directory, LOBBY, claims("ann"))
        directory.ask_writing(ann.seat, lambda code: None)
        policies.waits = True
        directory.refreshed(ann.seat, Claims("authenticated", "ann", json='{"team":1}'))
        assert ann.seat.writing is None  # asked for again by the next push
        assert ann.seat.reading == LISTENS
        policies.says = lambda question: WATCHES
        policies.answer_kept()
        assert ann.changes == [LISTENS, WATCHES]
        assert policies.asked[-1].claims == '{"team":1}'
        assert policies.patient == []
        directory.refreshed(ann.seat, claims("ann"))
        policies.says = nothing
        policies.answer_kept()
        assert ann.endings == [lost("lobby")]
        assert not directory._topics

    serving(FakeRows(), policies, test)


def test_an_answer_for_an_older_token_does_not_count() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann = await asked(directory, LOBBY, claims("ann"))
        policies.waits = True
        codes: list[str] = []
        directory.ask_writing(ann.seat, codes.append)
        directory.refreshed(ann.seat, claims("bob"))
        policies.says = lambda question: ann_reads(question) if question.writes else LISTENS
        policies.answer_kept()
        policies.answer_kept()
        assert codes == [""]
        assert ann.seat.writing == WRITES_NOTHING
        assert not ann.endings

    serving(FakeRows(), policies, test)


def test_a_new_token_that_nobody_can_judge_ends_the_seat_and_a_look_at_policies_does_not() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann = await asked(directory, LOBBY, claims("ann"))
        policies.says = lambda question: UNREACHED
        directory.policies_changed()
        await settle(5)
        assert not ann.endings
        assert len(policies.patient) > 2
        directory.refreshed(ann.seat, claims("ann"))
        await settle()
        assert ann.endings == [tuple(UNREACHED)]

    serving(FakeRows(), policies, test)


def test_a_change_of_policies_is_for_those_whom_they_let_in() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        bob = await asked(directory, GENERAL, claims("bob"))
        ann = await asked(directory, GENERAL, claims("ann"))
        policies.says = nothing
        directory.policies_changed()
        await settle()
        assert ann.endings == [lost()]
        assert not bob.endings
        assert [question.sub for question in policies.patient] == ["ann"]

    serving(FakeRows([PRIVATE], [member("bob")]), policies, test)


def test_a_membership_that_ends_leaves_what_policies_allow() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann, bob = await asked(directory, GENERAL, claims("ann")), await asked(directory, GENERAL, claims("bob"))
        for xid, user in enumerate(("ann", "bob"), 200):
            directory.applied(transaction(xid, change("channel_members", None, member(user))), STARTED)
        assert (ann.seat.role, ann.seat.reading) == (None, LISTENS)
        assert bob.endings == [lost()]
        directory.applied(transaction(210, change("channel_members", member("ann"))), STARTED)
        assert (ann.seat.role, ann.seat.reading) == ("member", READS_ALL)

    serving(FakeRows([PRIVATE], [member("ann"), member("bob")]), policies, test)


def test_an_answer_that_comes_when_the_role_is_forgotten_is_asked_for_again() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        ann = await asked(directory, LOBBY, claims("ann"))
        policies.waits = True
        directory.policies_changed()
        await settle(61)
        policies.answer_kept()
        await settle()
        assert len(policies.patient) == 2
        policies.answer_kept()
        assert not ann.endings
        assert ann.seat.reading == LISTENS

    serving(FakeRows(), policies, test)


def test_without_policies_a_membership_that_ends_ends_the_seat_at_once() -> None:
    policies = FakePolicies()
    policies.waits, policies.admits = True, False

    async def test(directory: Directory) -> None:
        ann = await asked(directory, GENERAL, claims("ann"))
        directory.applied(transaction(200, change("channel_members", None, member("ann"))), STARTED)
        assert ann.endings == [lost()]
        assert policies.asked == []

    serving(FakeRows([PRIVATE], [member("ann")]), policies, test)


def test_an_answer_about_a_topic_is_none_about_the_channel_that_it_has_become() -> None:
    policies = FakePolicies(lambda question: READS_NOTHING if question.channel_id else LISTENS)
    policies.waits = True

    async def test(directory: Directory) -> None:
        nobody = await asked(directory, GENERAL, claims())
        directory.applied(transaction(200, change("channels", PRIVATE)), STARTED)
        policies.answer_kept()
        await settle()
        policies.answer_kept()
        assert nobody.answers == [FORBIDDEN.format("general")]

    serving(FakeRows(), policies, test)


def test_who_is_made_a_member_while_policies_are_asked_is_one() -> None:
    policies = FakePolicies(ann_reads)
    policies.waits = True

    async def test(directory: Directory) -> None:
        ann = await asked(directory, GENERAL, claims("ann"))
        directory.applied(transaction(200, change("channel_members", member("ann"))), STARTED)
        policies.answer_kept()
        assert ann.seat.role == "member"
        directory.leave(ann.seat)
        await settle(6)
        directory.changed()
        assert not len(directory._memberships)

    serving(FakeRows([PRIVATE]), policies, test)


def test_a_topic_that_becomes_a_channel_while_policies_are_asked_is_asked_about_again() -> None:
    policies = FakePolicies(ann_reads)
    policies.waits = True

    async def test(directory: Directory) -> None:
        ann = await asked(directory, GENERAL, claims("ann"))
        directory.applied(transaction(200, change("channels", PRIVATE)), STARTED)
        policies.answer_kept()
        await settle()
        policies.answer_kept()
        assert ann.seat.channel is not None
        assert [question.channel_id for question in policies.asked] == [None, "id-general"]

    serving(FakeRows(), policies, test)


def test_why_there_is_no_answer_is_told_and_a_failing_policy_lets_nobody_in() -> None:
    policies = FakePolicies()

    async def test(directory: Directory) -> None:
        for trouble, reason in (
            (CANCELED, ": ".join(CANCELED)),
            (UNREACHED, ": ".join(UNREACHED)),
            (Trouble(POLICY_ERROR, "division by zero"), FORBIDDEN.format("lobby")),
        ):
            policies.says = always(trouble)
            assert (await asked(directory, LOBBY, claims("ann"))).answers == [reason]
            assert await directory.seat(Seat(LOBBY, claims("ann")), writes=True) == ": ".join(trouble)

    serving(FakeRows(), policies, test)


def test_in_private_only_mode_nobody_comes_into_a_public_room() -> None:
    policies = FakePolicies(ann_reads)

    async def test(directory: Directory) -> None:
        for room in (RoomKey("lobby"), RoomKey("open"), RoomKey("open", private=True)):
            for who in (claims("ann"), claims(role="service_role")):
                assert (await asked(directory, room, who)).answers == [PRIVATE_ONLY]
        assert (await asked(directory, LOBBY, claims("ann"))).seat.reading == LISTENS
        assert (await asked(directory, RoomKey("general"), claims("bob"))).seat.role == "member"

    serving(FakeRows([channel("open"), PRIVATE], [member("bob")]), policies, test, private_only=True)
