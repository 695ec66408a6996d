"""Private rooms whose members are let in by policies: what each hears, may send, track and have stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import trio

from tests.shell.channels_support import FakePolicies, snapshot
from tests.shell.rooms_support import Client, world
from tests.support import run
from walstream.auth.tokens import Claims
from walstream.channel.permission import READS_ALL, UNREACHED, WRITES_ALL, Answer, Question, Reading, Writing, nothing
from walstream.channel.pushes import BroadcastPush, PresencePush
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.message_store import Replayed
from walstream.shell.channels.rooms import Rooms

READS = {"ann": READS_ALL, "listener": Reading(True, False), "watcher": Reading(False, True)}
WRITES = {"ann": WRITES_ALL, "listener": Writing(False, True, False), "watcher": Writing(True, False, False)}
HALL = RoomKey("hall", private=True)


def says(question: Question) -> Answer:
    known: dict[str, Answer] = {**(WRITES if question.writes else READS)}
    return known.get(question.sub, nothing(question))


def settled(main: Callable[[], Any]) -> None:
    run(main, autojump=True)


def join(client: Client, **config: Any) -> Client:
    client.join(private=True, **config)
    return client


def events(client: Client) -> list[Any]:
    """What it heard, presence by its event alone."""
    return [found[0] if isinstance(found, tuple) else found for found in client.heard()]


def test_who_may_read_one_thing_hears_that_alone() -> None:
    async def main() -> None:
        async with world(policies=FakePolicies(says)) as (here, there, _):
            presence = {"presence": {"enabled": True}}
            ann = join(Client(here, "1", "ann"), **presence)
            listener, watcher = join(Client(here, "2", "listener"), **presence), Client(there, "3", "watcher")
            join(watcher, **presence)
            stranger = join(Client(here, "4", "eve"))
            await trio.sleep(1)
            assert stranger.refused
            assert (events(ann), events(listener), events(watcher)) == (["presence_state"], [], ["presence_state"])
            ann.say("hello")
            ann.do(PresencePush(b'{"n":1}'))
            await trio.sleep(1)
            assert (events(listener), events(watcher)) == (["hello"], ["presence_diff"])
            assert len(here.rooms) == 1
            for client in (ann, listener, watcher):
                client.leave(1)
            await trio.sleep(1)
            assert here.is_empty()
            assert there.is_empty()

    settled(main)


def test_who_may_write_one_thing_sends_that_alone() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann, listener, watcher = (join(Client(here, name, name)) for name in ("ann", "listener", "watcher"))
            await trio.sleep(1)
            assert not [question for question in policies.asked if question.writes]
            for client in (listener, watcher):
                client.say("hello")
                client.do(PresencePush(b"{}"))
            await trio.sleep(1)
            assert listener.answers == [("error", {"error": "unauthorized"}), ("ok", {})]
            assert watcher.answers == [("ok", {}), ("error", {})]
            assert [found for found in ann.heard() if found == "hello"] == ["hello"]
            assert len([question for question in policies.asked if question.writes]) == 2
            watcher.do(BroadcastPush("say", b"1", persist=True))
            await trio.sleep(1)
            assert watcher.answers[-1] == ("error", {"error": "unauthorized"})
            ann.do(BroadcastPush("say", b"1", persist=True))
            await trio.sleep(1)
            assert here.store._queue or here.store.failed or ann.answers  # it went on its way to the store

    settled(main)


def test_what_comes_before_the_answer_waits_in_order() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann, bob = join(Client(here, "1", "ann")), join(Client(here, "2", "listener"))
            await trio.sleep(1)
            policies.waits = True
            for number in range(5):
                ann.say(number)
            ann.do(PresencePush(b"{}"))
            ann.do(PresencePush(None))
            assert bob.heard() == []
            policies.waits = False
            policies.answer_kept()
            await trio.sleep(1)
            assert [found for found in bob.heard() if isinstance(found, int)] == [0, 1, 2, 3, 4]
            assert ann.answers == [("ok", {})] * 7
            assert len([question for question in policies.asked if question.writes]) == 1

    settled(main)


def test_what_waits_is_bounded_and_refused_where_nobody_knows() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann = join(Client(here, "1", "ann"))
            await trio.sleep(1)
            policies.waits = True
            for _ in range(4):
                ann.say("x" * 400)
            assert ann.answers == [("error", {"error": "increase_connection_pool"})] * 2
            policies.says = lambda question: UNREACHED
            policies.answer_kept()
            assert ann.answers[2:] == [("error", {"error": "unable_to_connect_to_project"})] * 2
            assert here.rooms.broadcasts_refused == 4

    settled(main)


def test_who_leaves_while_waiting_sends_nothing() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann, bob = join(Client(here, "1", "ann")), join(Client(here, "2", "listener"))
            await trio.sleep(1)
            policies.waits = True
            ann.say(1)
            ann.leave(1)
            policies.answer_kept()
            await trio.sleep(1)
            assert (bob.heard(), ann.answers) == ([], [])

    settled(main)


def test_a_new_token_changes_what_is_heard_and_asks_again_what_may_be_sent() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann, bob = join(Client(here, "1", "ann")), Client(here, "2", "listener")
            join(bob, presence={"enabled": True})
            await trio.sleep(1)
            ann.say(0)
            bob.say(0)
            here.rooms.refreshed(bob, 1, Claims("anon", "watcher"))
            ann.say(1)
            ann.do(PresencePush(b"{}"))
            await trio.sleep(1)
            assert events(bob) == [0, "presence_state", "presence_diff"]
            bob.say(2)
            await trio.sleep(1)
            assert bob.answers == [("error", {"error": "unauthorized"}), ("ok", {})]
            policies.says = nothing
            here.directory.policies_changed()
            await trio.sleep(1)
            assert ann.endings == bob.endings == ["Unauthorized"]
            assert here.is_empty()

    settled(main)


def test_a_replay_is_for_those_who_may_hear() -> None:
    async def main() -> None:
        async with world(policies=FakePolicies(says)) as (here, _, _):
            asked: list[RoomKey] = []

            async def replay(room: RoomKey, since_ms: int, limit: int) -> Replayed:
                await trio.lowlevel.checkpoint()
                asked.append(room)
                return Replayed(
                    [Broadcast(room=room, event="say", payload=b"0", id="i", seq=1)], snapshot(5), is_full=False
                )

            here.store.replay = replay  # type: ignore[method-assign]  # a stand-in
            replayed = {"broadcast": {"replay": {"since": 0}}}
            listener = join(Client(here, "1", "listener"), **replayed)
            watcher = join(Client(here, "2", "watcher"), **replayed)
            await trio.sleep(1)
            assert (listener.heard(), watcher.heard(), watcher.refused) == ([0], [], [])
            assert asked == [HALL]

    settled(main)


def publish(rooms: Rooms, user: str, **more: Any) -> Any:
    broadcast = Broadcast(room=HALL, event="say", payload=json.dumps("hi").encode())
    return rooms.publish(Claims("anon", user), broadcast, **more)


def test_requests_need_the_right_to_send_and_no_other() -> None:
    policies = FakePolicies(says)

    async def main() -> None:
        async with world(policies=policies) as (here, _, _):
            ann = join(Client(here, "1", "ann"))
            await trio.sleep(1)
            assert await publish(here.rooms, "watcher", headers='{"x-door":"1"}') == ""
            assert await publish(here.rooms, "listener") == "unauthorized"
            assert await publish(here.rooms, "watcher", persist=True) == "unauthorized"
            policies.says = lambda question: UNREACHED
            assert await publish(here.rooms, "watcher") == "unable_to_connect_to_project"
            await trio.sleep(1)
            assert ann.heard() == ["hi"]
            assert policies.asked[1].headers == '{"x-door":"1"}'

    settled(main)
