"""What the WAL says of rooms, with a real slot and both plugins: once each, in order, across restarts."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio

from integration.channels.rooms_rig import Rig, eventually, message, register, running
from integration.fixtures.postgres import TestDatabase
from walstream.auth.tokens import Claims
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels import wal_feed
from walstream.shell.channels.directory import CHANGED, DELETED, LOST
from walstream.shell.channels.seats import Seat


@pytest.fixture(params=["wal2json", "pgoutput"])
def rig(request: pytest.FixtureRequest, prepared: TestDatabase) -> Rig:
    return Rig(prepared, request.param)


def send(database: TestDatabase, event: str, topic: str = "room", private: str = "false", payload: str = "{}") -> None:
    database.execute(f"select realtime.send(%s::jsonb, %s, %s, {private})", (payload, event, topic))


def again(rig: Rig) -> Rig:
    """Another process with the same slot."""
    return Rig(rig.database, "auto")


def test_messages_of_sql_are_heard_with_all_that_is_known_of_them(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            send(rig.database, "a.b", 'to"pic é', payload='{"deep": ["é", 1.5]}')
            rig.database.execute("select realtime.send_binary('\\x00ff', 'bytes', 'room', true)")
            rig.database.execute("insert into realtime.messages (topic, event_type) values ('room', 'plain')")
            await eventually(lambda: len(rig.heard) == 3)
        rows = rig.database.query("select id::text, seq, to_json(sent_at) #>> '{}' from realtime.messages order by seq")
        assert [(b.id, b.seq, b.sent_at) for b in rig.heard] == rows
        text, binary, plain = rig.heard
        assert text.room == RoomKey('to"pic é')
        assert json.loads(text.payload) == {"id": text.id, "deep": ["é", 1.5]}
        assert (binary.binary, binary.payload, binary.room.private) == (True, b"\0\xff", True)
        assert (plain.event, plain.payload, plain.room) == ("plain", b"null", RoomKey("room"))

    trio.run(main)


def test_what_is_not_to_be_shown_is_not_heard(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            rig.database.execute(
                "insert into realtime.messages (topic, event, payload, hidden) values ('room', 'hidden', '{}', true);"
                "insert into realtime.messages (topic, event, payload, expires_at)"
                " values ('room', 'expired', '{}', now() - interval '1 s');"
                "insert into realtime.messages (topic, event, payload, extension)"
                " values ('room', 'presence', '{}', 'presence');"
                "insert into realtime.messages (topic, payload) values ('room', '{}')"
            )
            rig.database.execute("begin; select realtime.send('{}', 'undone', 'room'); rollback")
            send(rig.database, "shown")
            rig.database.execute("delete from realtime.messages")
            send(rig.database, "last")
            await eventually(lambda: "last" in rig.events)
        assert rig.events == ["shown", "last"]

    trio.run(main)


def test_own_messages_are_told_to_their_sender_once_and_not_heard_again(rig: Rig) -> None:
    channel_id = register(rig.database)

    async def main() -> None:
        async with running(rig):
            stored = [await rig.append(message(str(n)), channel_id=channel_id) for n in range(20)]
            send(rig.database, "last")
            await eventually(lambda: rig.events == ["last"])
            assert all(isinstance(outcome, Broadcast) for outcome in stored)

    trio.run(main)


def test_a_transaction_of_very_many_messages_is_heard_whole_and_in_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_feed, "SPILL_BYTES", 200_000)

    async def main() -> None:
        async with running(rig):
            rig.database.execute(
                "insert into realtime.messages (topic, event, payload)"
                " select 'room', n::text, '{}' from generate_series(1, 30000) n"
            )
            for n in range(30_001, 30_101):
                send(rig.database, str(n))
            await eventually(lambda: len(rig.heard) >= 30_100)
            send(rig.database, "30101")
            await eventually(lambda: len(rig.heard) >= 30_101)
        assert rig.events == [str(n) for n in range(1, 30_102)]

    trio.run(main)


def test_a_new_process_reads_again_and_nobody_hears_it_again(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            send(rig.database, "before")
            await eventually(lambda: rig.events == ["before"])
        second = again(rig)
        send(rig.database, "between")
        async with running(second):
            send(second.database, "after")
            await eventually(lambda: second.events)
            await trio.sleep(0.2)
        assert second.events == ["after"]

    trio.run(main)


def test_what_is_committed_after_the_start_and_before_the_stream_is_heard(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            send(rig.database, "before")
            await eventually(lambda: rig.events == ["before"])
        second = again(rig)
        async with running(second, stream=False):
            send(second.database, "early")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.reader.run)
                await eventually(lambda: second.events == ["early"])
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_stream_that_breaks_loses_nothing_and_repeats_nothing(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            for n in range(60):
                send(rig.database, str(n))
                if n % 20 == 10:
                    rig.database.execute(
                        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s",
                        (rig.slot,),
                    )
                await trio.sleep(0.01)
            await eventually(lambda: len(rig.heard) >= 60)
            await trio.sleep(0.2)
        assert rig.events == [str(n) for n in range(60)]

    trio.run(main)


def test_messages_of_the_time_without_a_slot_are_looked_up(rig: Rig) -> None:
    async def main() -> None:
        async with running(rig):
            send(rig.database, "before")
            await eventually(lambda: rig.events == ["before"])
            rig.database.execute(
                "select pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name)"
                " from pg_replication_slots where slot_name = %s",
                (rig.slot,),
            )
            send(rig.database, "lost")
            await eventually(lambda: "lost" in rig.events)
            await eventually(lambda: rig.is_streaming)
            send(rig.database, "after")
            await eventually(lambda: "after" in rig.events)
        assert rig.events == ["before", "lost", "after"]

    trio.run(main)


def test_channels_and_members_are_followed(rig: Rig) -> None:
    database = rig.database
    kept = register(database, "kept", "private")
    endings: list[tuple[str, str]] = []
    room = RoomKey("kept", private=True)
    ann = Claims("authenticated", "ann")
    lost = (LOST[0], LOST[1].format("kept"))

    async def main() -> None:
        async with running(rig):
            assert isinstance(await rig.seat(room, ann), str)
            database.execute("insert into realtime.channel_members (channel_id, user_id) values (%s, 'ann')", (kept,))
            seat = await rig.seat(room, ann, lambda *why: endings.append(why))
            assert isinstance(seat, Seat)
            assert seat.role == "member"
            database.execute("update realtime.channel_members set role = 'admin', muted = true")
            await eventually(lambda: seat.may_administer and not seat.may_send)
            database.execute("delete from realtime.channel_members")
            await eventually(lambda: endings == [lost])

            register(database, "new", metadata=json.dumps({"schemas": {"e": {"type": "object"}}, "x": "y" * 20_000}))
            await eventually(lambda: rig.directory.find("new"))
            other = await rig.seat(RoomKey("new"), ann, lambda *why: endings.append(why))
            assert isinstance(other, Seat)
            # The long metadata are not written to the WAL again.
            database.execute("update realtime.channels set persist = false where slug = 'new'")
            await eventually(lambda: other.channel is not None and not other.channel.persist)
            assert other.channel is not None
            assert other.channel.refusal("e", b"1")
            database.execute("update realtime.channels set type = 'private' where slug = 'new'")
            await eventually(lambda: endings == [lost, CHANGED])
            third = await rig.seat(RoomKey("new"), Claims("service_role"), lambda *why: endings.append(why))
            assert isinstance(third, Seat)
            database.execute("delete from realtime.channels where slug = 'new'")
            await eventually(lambda: endings == [lost, CHANGED, DELETED])

    trio.run(main)


def test_writers_that_are_killed_lose_nothing_that_was_acked_and_hide_nothing_that_was_stored(rig: Rig) -> None:
    channel_id = register(rig.database)
    outcomes: dict[str, Broadcast | str] = {}

    def done(event: str, outcome: Broadcast | str) -> None:
        assert event not in outcomes
        outcomes[event] = outcome

    async def main() -> None:
        async with running(rig):
            sent = 0
            for round_ in range(40):
                for _ in range(50):
                    event = f"own {sent}"
                    rig.store.append(message(event), partial(done, event), channel_id=channel_id, sender="ann")
                    sent += 1
                if round_ % 3 == 1:
                    rig.database.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'rig (writer)'"
                    )
                await trio.sleep(0.01)
            await eventually(lambda: len(outcomes) == sent)
            send(rig.database, "last")
            await eventually(lambda: "last" in rig.events)

    trio.run(main)
    acked = {event for event, outcome in outcomes.items() if isinstance(outcome, Broadcast)}
    refused = outcomes.keys() - acked
    assert acked
    assert refused  # else nobody was killed in time
    rows = [event for (event,) in rig.database.query("select event from realtime.messages where event <> 'last'")]
    assert len(set(rows)) == len(rows)
    assert acked <= set(rows)
    heard = [event for event in rig.events if event != "last"]
    assert sorted(heard) == sorted(set(rows) - acked)
