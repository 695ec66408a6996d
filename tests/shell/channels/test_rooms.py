"""Rooms of two nodes on one bus: who hears what, what is answered, and that nothing of anybody stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.shell.channels_support import channel, member, snapshot, transaction
from tests.shell.rooms_support import MAX_BYTES, Client, Node, world
from tests.support import freed_at_once, run
from walstream.auth.tokens import Claims
from walstream.channel.pushes import BroadcastPush, PresencePush
from walstream.errors import DatabaseUnreachable
from walstream.protocol.phoenix import VSN_1
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.guests import Guest
from walstream.shell.channels.message_store import Replayed
from walstream.shell.channels.rooms import REPLAY_FAILED, REPLAY_OF_PUBLIC
from walstream.shell.channels.seats import Seat


def settled(main: Callable[[], Any]) -> None:
    run(main, autojump=True)


def test_everybody_else_hears_on_all_nodes() -> None:
    async def main() -> None:
        async with world() as (here, there, _):
            one, two, far = Client(here, "1"), Client(here, "2", vsn=VSN_1), Client(there, "3")
            for client in (one, two, far):
                client.join()
            one.say({"n": 1}, whole=b'{"event":"say","payload":{"n":1},"type":"broadcast"}')
            one.say({"n": 2})
            await trio.sleep(1)
            assert one.heard() == []
            assert two.heard() == far.heard() == [{"n": 1}, {"n": 2}]
            assert one.answers == [("ok", {}), ("ok", {})]
            two.do(BroadcastPush("say", b"3"), asked=None)
            await trio.sleep(1)
            assert one.heard() == far.heard() == [3]
            assert two.answers == []

    settled(main)


def test_who_wants_to_hears_itself() -> None:
    async def main() -> None:
        async with world() as (here, _, _):
            one = Client(here, "1")
            one.join(broadcast={"self": True})
            one.say(1)
            await trio.sleep(1)
            assert one.heard() == [1]

    settled(main)


def test_what_goes_out_in_one_round_costs_one_write() -> None:
    async def main() -> None:
        async with world() as (here, _, _):
            one, two = Client(here, "1"), Client(here, "2")
            one.join()
            two.join()
            for number in range(20):
                one.say(number)
            await trio.sleep(1)
            assert two.wire.writes == 1
            assert two.heard() == list(range(20))

    settled(main)


def test_public_and_private_are_two_rooms() -> None:
    async def main() -> None:
        async with world() as (here, _, _):
            outside, inside, other = (Client(here, name, role="service_role") for name in "abc")
            outside.join()
            inside.join(private=True)
            other.join(private=True)
            await trio.sleep(1)
            inside.say("in")
            outside.say("out")
            await trio.sleep(1)
            assert (outside.heard(), inside.heard(), other.heard()) == ([], [], ["in"])
            stranger = Client(here, "d", "eve", "authenticated")
            stranger.join(private=True)
            await trio.sleep(1)
            [reason] = stranger.refused
            assert reason.startswith("Unauthorized: ")

    settled(main)


@pytest.mark.parametrize(
    ("push", "error"),
    [
        (BroadcastPush("say", b'"' + b"x" * MAX_BYTES + b'"'), "payload_size_exceeded"),
        (BroadcastPush("typed", b'"no number"'), "payload_invalid"),
        (BroadcastPush("e" * 1001, b"7"), "payload_invalid"),
        (BroadcastPush("typed", b"7"), ""),
    ],
)
def test_what_cannot_be_sent_is_answered(push: BroadcastPush, error: str) -> None:
    async def main() -> None:
        row = channel("hall", persist=False, metadata={"schemas": {"typed": {"type": "number"}}})
        async with world(row) as (here, _, _):
            one, two = Client(here, "1"), Client(here, "2")
            one.join()
            two.join()
            await trio.sleep(1)
            one.do(push)
            await trio.sleep(1)
            [(status, response)] = one.answers
            assert (status, response.get("error", "")) == ("error" if error else "ok", error)
            assert two.heard() == ([] if error else [7])

    settled(main)


def test_a_message_is_stored_before_anybody_hears_it() -> None:
    async def main() -> None:
        async with world(channel("hall")) as (here, _, _):
            one, two = Client(here, "1"), Client(here, "2")
            one.join()
            two.join()
            await trio.sleep(1)
            one.say({"n": 1})
            assert one.answers == []
            [append] = here.store._under_way.values()
            stored = append.message.broadcast
            assert stored.room == RoomKey("hall")
            here.store._settle(
                append, Broadcast(room=stored.room, event="say", payload=stored.payload, id=append.message.id, seq=1)
            )
            await trio.sleep(1)
            assert one.answers == [("ok", {"id": append.message.id})]
            assert two.heard() == [{"n": 1}]
            one.say({"n": 2})
            [append] = here.store._under_way.values()
            here.store._fail(append, "unable_to_connect_to_project")
            await trio.sleep(1)
            assert one.answers[1] == ("error", {"error": "unable_to_connect_to_project"})
            assert two.heard() == []

    settled(main)


def test_who_loses_the_membership_is_sent_away_and_who_is_muted_is_not_heard() -> None:
    async def main() -> None:
        rows = (member("ada", "hall"), member("bob", "hall", muted=True))
        async with world(channel("hall", type="private", persist=False), members=rows) as (here, _, rows_now):
            ada, bob = (Client(here, name, name, "authenticated") for name in ("ada", "bob"))
            ada.join()
            bob.join()
            await trio.sleep(1)
            bob.say(1)
            ada.say(2)
            await trio.sleep(1)
            assert bob.answers == [("error", {"error": "unauthorized"})]
            assert (ada.heard(), bob.heard()) == ([], [2])
            rows_now.member_rows.clear()
            here.directory.changed()
            await trio.sleep(5)
            assert ada.endings == bob.endings == ["Unauthorized"]

    settled(main)


def test_presence_reaches_all_nodes_and_ends_with_its_socket() -> None:
    async def main() -> None:
        async with world() as (here, there, _):
            one, far = Client(here, "1"), Client(there, "2", vsn=VSN_1)
            one.join(presence={"enabled": True, "key": "one"})
            far.join(presence={"enabled": True, "key": "far"})
            await trio.sleep(1)
            assert one.heard() == far.heard() == [("presence_state", {})]
            one.do(PresencePush(b'{"n":1}'))
            one.do(PresencePush(b'{"n":1}'))
            await trio.sleep(1)
            for client in (one, far):
                [(event, diff)] = client.heard()
                assert event == "presence_diff"
                assert diff["joins"]["one"]["metas"][0]["n"] == 1
            assert one.answers == [("ok", {}), ("ok", {})]
            late = Client(there, "3")
            late.join()
            late.do(PresencePush(b"{}"))
            await trio.sleep(1)
            assert list(late.heard()[0][1]) == ["one"]
            far.heard()
            one.leave(1)
            await trio.sleep(1)
            assert list(far.heard()[0][1]["leaves"]) == ["one"]
            late.do(PresencePush(b"x" * (MAX_BYTES + 1)))
            assert late.endings == ["TrackMessageSizeExceeded"]

    settled(main)


def test_a_presence_channel_tracks_under_the_users_name() -> None:
    async def main() -> None:
        async with world(channel("hall", type="presence")) as (here, _, _):
            ada = Client(here, "1", "ada", "authenticated")
            ada.join()
            await trio.sleep(1)
            (_, state), (_, diff) = ada.heard()
            assert state == {}
            assert diff["joins"]["ada"]["metas"][0]["user_id"] == "ada"

    settled(main)


def stored(seq: int, room: RoomKey) -> Broadcast:
    return Broadcast(room=room, event="say", payload=str(seq).encode(), id=f"id-{seq}", seq=seq, sent_at="2026-01-01")


def replaying(node: Node, replayed: Replayed, during: Callable[[], None]) -> None:
    """Have the node's store answer replays with this, after ``during`` has happened."""

    async def replay(room: RoomKey, since_ms: int, limit: int) -> Replayed:
        await trio.sleep(1)
        during()
        return replayed

    node.store.replay = replay  # type: ignore[method-assign]  # a stand-in


@pytest.mark.parametrize("is_full", [False, True])
def test_between_replay_and_live_nothing_is_missing_and_nothing_twice(is_full: bool) -> None:
    room = RoomKey("hall")

    async def main() -> None:
        async with world(channel("hall")) as (here, _, _):
            ada = Client(here, "1")

            def during() -> None:
                for seq in (3, 5, 7):  # too old, in the replay, new
                    here.rooms.stored(stored(seq, room), transaction(seq * 10))

            replaying(here, Replayed([stored(4, room), stored(5, room)], snapshot(55), is_full=is_full), during)
            ada.join(broadcast={"replay": {"since": 0}})
            await trio.sleep(5)
            for seq in (2, 4, 6, 8):
                here.rooms.stored(stored(seq, room), transaction(seq * 10))
            await trio.sleep(1)
            old = [] if is_full else [3]
            older = [] if is_full else [2]
            assert ada.heard() == [4, 5, *old, 7, *older, 6, 8]
            here.rooms.passed(transaction(40))
            await trio.sleep(2)
            assert here.rooms._seams
            here.rooms.passed(transaction(80))  # what follows in the WAL is new for everybody
            assert not here.rooms._seams

    settled(main)


def test_a_node_that_does_not_read_the_wal_forgets_replays_as_well() -> None:
    async def main() -> None:
        async with world(channel("hall")) as (here, _, _):
            ada = Client(here, "1")
            replaying(here, Replayed([], snapshot(55), is_full=False), lambda: None)
            ada.join(broadcast={"replay": {"since": 0}})
            await trio.sleep(300)
            assert here.rooms._seams
            await trio.sleep(600)
            assert not here.rooms._seams

    settled(main)


def test_a_replay_that_fails_refuses_the_join() -> None:
    async def main() -> None:
        async with world(channel("hall")) as (here, _, _):
            ada, bob = Client(here, "1"), Client(here, "2")
            here.database.failures.append(DatabaseUnreachable("away"))
            ada.join(broadcast={"replay": {"since": 0}})
            bob.join("realtime:open", broadcast={"replay": {"since": 0}})
            await trio.sleep(5)
            assert (ada.refused, bob.refused) == ([REPLAY_FAILED], [REPLAY_OF_PUBLIC])
            assert here.is_empty()

    settled(main)


def test_nothing_of_anybody_stays_behind() -> None:
    room = RoomKey("hall")

    async def main() -> None:
        rows = (member("ada", "hall"),)
        async with world(channel("hall", type="presence"), members=rows) as (here, there, _):
            replaying(here, Replayed([stored(4, room)], snapshot(10**9), is_full=True), lambda: None)
            clients = [Client(here, str(number), "ada", "authenticated") for number in range(6)]
            for client in clients[:3]:
                client.join(broadcast={"replay": {"since": 0}})
            for client in clients[3:5]:
                client.join("realtime:open")
                client.do(PresencePush(b"{}"))
            clients[5].join("realtime:never", enters=False)
            clients[0].leave(1)  # before it was answered
            await trio.sleep(5)
            for client in clients:
                client.leave(1)
            await trio.sleep(1)
            assert here.is_empty()
            assert there.is_empty()

    settled(main)


def test_rest_is_answered_when_it_is_sent() -> None:
    async def main() -> None:
        async with world(channel("team", type="private", persist=False)) as (here, _, _):
            one = Client(here, "1")
            one.join()
            claims = Claims("authenticated", "eve")
            message = Broadcast(room=RoomKey("hall"), event="say", payload=b"1")
            assert await here.rooms.publish(claims, message) == ""
            await trio.sleep(1)
            assert one.heard() == [1]
            denied = Broadcast(room=RoomKey("team"), event="say", payload=b"1")
            assert await here.rooms.publish(claims, denied) == "unauthorized"
            large = Broadcast(room=RoomKey("hall"), event="say", payload=b"1" * (MAX_BYTES + 1))
            assert await here.rooms.publish(claims, large) == "payload_size_exceeded"
            one.leave(1)
            assert here.is_empty()

    settled(main)


def test_who_has_left_leaves_nothing_to_the_collector() -> None:
    async def main() -> None:
        async with world() as (here, _, _):
            client = Client(here, "1")
            serial = client.join(presence={"enabled": True})
            await trio.sleep(1)
            client.leave(serial)
            await trio.sleep(1)

    with freed_at_once(Guest, Seat):
        settled(main)
