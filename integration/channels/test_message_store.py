"""Storing many messages at once in a real table: order, refusals of single rows, a database that goes away."""

from __future__ import annotations

import json
import time

import psycopg2
import pytest
import trio

from integration.channels.rooms_rig import Rig, eventually, message, register, running
from integration.fixtures.postgres import TestDatabase
from walstream.channel.since import Position
from walstream.lsn import Lsn
from walstream.model import Transaction
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels import message_store
from walstream.shell.channels.message_store import BUSY, INVALID, UNKNOWN_CHANNEL, UNREACHABLE
from walstream.shell.database import message_rows
from walstream.shell.database.message_rows import Kept
from walstream.shell.database.postgres import connect

GENERAL = RoomKey("general")


def test_messages_get_what_the_table_gives_them_in_the_order_of_sending(prepared: TestDatabase) -> None:
    channel_id = register(prepared)
    rig = Rig(prepared)
    outcomes: list[Broadcast | str] = []

    async def main() -> None:
        async with running(rig, stream=False):
            for n in range(2500):
                sent = message(str(n), json.dumps({"n": n, "text": "é'\\\""}).encode())
                rig.store.append(sent, outcomes.append, channel_id=channel_id, sender="ann")
            await eventually(lambda: len(outcomes) == 2500)

    trio.run(main)
    stored = [outcome for outcome in outcomes if isinstance(outcome, Broadcast)]
    assert [b.event for b in stored] == [str(n) for n in range(2500)]
    assert len({b.id for b in stored}) == 2500
    rows = prepared.query(
        "select id::text, seq, to_json(sent_at) #>> '{}', event, payload, sender_id, channel_id::text, private"
        " from realtime.messages order by seq"
    )
    assert [row[:4] for row in rows] == [(b.id, b.seq, b.sent_at, b.event) for b in stored]
    assert {row[5:] for row in rows} == {("ann", channel_id, False)}
    assert rows[7][4] == {"n": 7, "text": "é'\\\""}
    assert len({row[2] for row in rows}) < 20  # transactions


def test_listeners_of_a_channel_get_the_id(prepared: TestDatabase) -> None:
    channel_id = register(prepared)
    rig = Rig(prepared)
    listener = prepared.connect()
    listener.cursor().execute(f'listen "realtime:channel:{channel_id}"')

    async def main() -> list[Broadcast | str]:
        async with running(rig, stream=False):
            await rig.append(message(room=RoomKey("elsewhere")))
            return [await rig.append(message(), channel_id=channel_id) for _ in range(2)]

    outcomes = trio.run(main)
    deadline = time.monotonic() + 10
    while len(listener.notifies) < 2 and time.monotonic() < deadline:
        listener.poll()
        time.sleep(0.01)
    assert [n.payload for n in listener.notifies] == [b.id for b in outcomes if isinstance(b, Broadcast)]
    listener.close()


def test_the_channel_decides_where_a_message_belongs(prepared: TestDatabase) -> None:
    channel_id = register(prepared, "secret", "private")
    rig = Rig(prepared)

    async def main() -> Broadcast | str:
        async with running(rig, stream=False):
            return await rig.append(message(room=RoomKey("secret")), channel_id=channel_id)

    stored = trio.run(main)
    assert isinstance(stored, Broadcast)
    assert stored.room == RoomKey("secret", private=True)


def test_a_row_that_is_refused_takes_no_other_with_it(prepared: TestDatabase) -> None:
    rig = Rig(prepared)
    bad = {
        3: (b'{"a": "\\u0000"}', None, INVALID),
        7: (b'"\\ud800"', None, INVALID),
        8: (b"{not json", None, INVALID),
        40: (b"{}", "00000000-0000-4000-8000-000000000000", UNKNOWN_CHANNEL),
        41: (b"\xff", None, INVALID),
        42: (b"1e999999", None, INVALID),
        43: (b"[" * 100_000 + b"]" * 100_000, None, INVALID),
    }
    outcomes: dict[int, Broadcast | str] = {}

    async def main() -> None:
        async with running(rig, stream=False):
            for n in range(50):
                payload, channel_id, _ = bad.get(n, (b'{"ok": "\\\\u0000"}', None, ""))

                def done(outcome: Broadcast | str, n: int = n) -> None:
                    outcomes[n] = outcome

                rig.store.append(message(str(n), payload), done, channel_id=channel_id, sender=None)
            rig.store.append(
                message("nul\0"), lambda outcome: outcomes.update({50: outcome}), channel_id=None, sender=None
            )
            await eventually(lambda: len(outcomes) == 51)

    trio.run(main)
    assert {n: outcome for n, outcome in outcomes.items() if isinstance(outcome, str)} == {
        **{n: code for n, (_, _, code) in bad.items()},
        50: INVALID,
    }
    assert prepared.scalar("select count(*) from realtime.messages") == 50 - len(bad)
    seqs = [outcome.seq for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Broadcast)]
    assert seqs == sorted(seqs, key=lambda seq: seq or 0)


def test_bytes_are_kept_as_bytes(prepared: TestDatabase) -> None:
    rig = Rig(prepared)
    sent = Broadcast(room=GENERAL, event="e", payload=bytes(range(256)), binary=True)

    async def main() -> list[Broadcast]:
        async with running(rig, stream=False):
            await rig.append(sent)
            return (await rig.store.replay(GENERAL, 0, 10)).messages

    (kept,) = trio.run(main)
    assert (kept.payload, kept.binary) == (bytes(range(256)), True)


def test_a_database_that_is_away_is_told_in_time_and_what_comes_later_is_stored(
    fragile: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_store, "WAIT_SECONDS", 2.0)
    rig = Rig(fragile)

    async def main() -> None:
        async with running(rig, stream=False):
            assert isinstance(await rig.append(message("before")), Broadcast)
            fragile.close()
            fragile.cluster.stop()
            assert await rig.append(message("during")) == UNREACHABLE
            fragile.cluster.start()
            assert isinstance(await rig.append(message("after")), Broadcast)

    trio.run(main)
    assert fragile.query("select event from realtime.messages order by seq") == [("before",), ("after",)]


def test_a_writer_that_hangs_is_given_up_and_the_wal_settles_nothing_twice(
    prepared: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_store, "WAIT_SECONDS", 0.5)
    rig = Rig(prepared)
    blocker = prepared.connect(autocommit=False)
    outcomes: list[Broadcast | str] = []

    async def main() -> None:
        async with running(rig, stream=False):
            blocker.cursor().execute("lock table realtime.messages in access exclusive mode")
            rig.store.append(message("stuck"), outcomes.append, channel_id=None, sender=None)
            await eventually(lambda: outcomes)
            assert outcomes == [UNREACHABLE]
            blocker.rollback()
            assert isinstance(await rig.append(message("next")), Broadcast)

    trio.run(main)
    blocker.close()
    assert prepared.query("select event from realtime.messages") == [("next",)]


def test_what_waits_is_answered_when_the_store_stops(prepared: TestDatabase) -> None:
    rig = Rig(prepared)
    outcomes: list[Broadcast | str] = []
    blocker = prepared.connect(autocommit=False)
    blocker.cursor().execute("lock table realtime.messages in access exclusive mode")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.store._store_forever)
            for _ in range(3):
                rig.store.append(message(), outcomes.append, channel_id=None, sender=None)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    trio.run(main)
    blocker.rollback()
    blocker.close()
    assert outcomes == [UNREACHABLE] * 3


def history(database: TestDatabase, *, topic: str = "general", count: int = 25) -> None:
    database.execute(
        "insert into realtime.messages (topic, event, payload, sent_at)"
        " select %s, n::text, jsonb_build_object('n', n), '2026-01-01 00:00:00Z'::timestamptz + n / 3 * interval '1 s'"
        " from generate_series(0, %s) n",
        (topic, count - 1),
    )


def test_replay_gives_the_newest_oldest_first(prepared: TestDatabase) -> None:
    history(prepared)
    rig = Rig(prepared)

    async def main() -> None:
        start = 1_767_225_600_000
        found = (await rig.store.replay(GENERAL, start + 2000, 25)).messages
        assert [b.event for b in found] == [str(n) for n in range(6, 25)]
        assert [b.event for b in (await rig.store.replay(GENERAL, 0, 3)).messages] == ["22", "23", "24"]
        assert (await rig.store.replay(RoomKey("general", private=True), 0, 3)).messages == []
        assert (await rig.store.replay(GENERAL, 10**20, 3)).messages == []
        assert len((await rig.store.replay(GENERAL, -5, -5)).messages) == 1

    trio.run(main)


def test_pages_follow_each_other_without_gap_or_repetition(prepared: TestDatabase) -> None:
    history(prepared)
    rig = Rig(prepared)

    async def main() -> None:
        found: list[Kept] = []
        at = Position(0)
        has_more = True
        while has_more:
            page, has_more = await rig.store.page(GENERAL, at, 4)
            assert 0 < len(page) <= 4
            found += page
            at = page[-1].position
        assert [kept.broadcast.event for kept in found] == [str(n) for n in range(25)]
        assert json.loads(found[3].broadcast.payload) == {"n": 3}
        assert (await rig.store.page(GENERAL, at, 4)).messages == []

    trio.run(main)


def test_members_of_a_private_channel_read_its_public_past_and_never_the_other_way_round(
    prepared: TestDatabase,
) -> None:
    register(prepared)
    rig = Rig(prepared)
    prepared.execute("insert into realtime.messages (topic, event, payload) values ('general', 'public', '{}')")
    prepared.execute("update realtime.channels set type = 'private'")
    prepared.execute("insert into realtime.messages (topic, event, payload) values ('general', 'private', '{}')")

    async def main() -> None:
        inside = (await rig.store.replay(RoomKey("general", private=True), 0, 9)).messages
        assert [b.event for b in inside] == ["public", "private"]
        outside = (await rig.store.replay(GENERAL, 0, 9)).messages
        assert [b.event for b in outside] == ["public"]

    trio.run(main)


def test_hidden_deleted_and_expired_messages_are_gone_for_readers(prepared: TestDatabase) -> None:
    channel_id = register(prepared)
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            kept, hidden, deleted, expiring = [
                await rig.append(message(event), channel_id=channel_id, ttl_seconds=ttl)
                for event, ttl in (("kept", None), ("hidden", None), ("deleted", None), ("expiring", 0.2))
            ]
            assert isinstance(kept, Broadcast)
            assert isinstance(hidden, Broadcast)
            assert isinstance(deleted, Broadcast)
            assert isinstance(expiring, Broadcast)
            other = register(prepared, "other")
            assert not await rig.store.hide(other, hidden.id)
            assert not await rig.store.delete(channel_id, "no uuid")
            assert await rig.store.hide(channel_id, hidden.id)
            assert await rig.store.delete(channel_id, deleted.id)
            assert not await rig.store.delete(channel_id, deleted.id)
            await trio.sleep(0.3)
            ids = [b.id for b in (kept, hidden, deleted, expiring)]
            assert [b.event for b in await rig.store.fetch([*ids, "x"])] == ["kept"]
            assert [b.event for b in (await rig.store.replay(GENERAL, 0, 9)).messages] == ["kept"]
            page = await rig.store.page(GENERAL, Position(0), 9)
            assert [kept.broadcast.event for kept in page.messages] == ["kept"]

    trio.run(main)


def test_retention_is_the_channels_or_the_general_one(prepared: TestDatabase) -> None:
    brief = register(prepared, "brief", retention_hours=1)
    long = register(prepared, "long", retention_hours=500)
    for topic, channel_id in (("brief", brief), ("long", long), ("open", None)):
        for hours in (0, 2, 80, 600):
            prepared.execute(
                "insert into realtime.messages (topic, channel_id, event, payload, sent_at)"
                " values (%s, %s, %s, '{}', now() - make_interval(hours => %s))",
                (topic, channel_id, f"{topic} {hours}", hours),
            )
    prepared.execute(
        "insert into realtime.messages (topic, event, payload, expires_at) values ('open', 'expired', '{}', now())"
    )
    connection = connect(prepared.dsn, application_name="upkeep")
    try:
        created, _ = message_rows.maintain(connection, "realtime")
        assert created == 0  # init has made them
        assert message_rows.delete_expired(connection, "realtime", 2, by_age=True) == 2
        assert message_rows.delete_expired(connection, "realtime", 100, by_age=True) == 4
        assert message_rows.delete_expired(connection, "realtime", 100, by_age=False) == 1
        busy = psycopg2.connect(prepared.dsn)
        busy.cursor().execute(message_rows._LOCK, ("realtime",))
        assert message_rows.delete_expired(connection, "realtime", 100, by_age=True) is None
        busy.close()
        assert connection.autocommit
    finally:
        connection.close()
    left = {row[0] for row in prepared.query("select event from realtime.messages")}
    assert left == {"brief 0", "long 0", "long 2", "long 80", "open 0", "open 2"}


def test_replay_knows_what_was_delivered_and_queries_do_not_see_yet(prepared: TestDatabase) -> None:
    rig = Rig(prepared)
    next_xid = int(prepared.scalar("select pg_snapshot_xmax(pg_current_snapshot())::text::int8 & 4294967295"))

    def delivered(event: str, xid: int) -> None:
        ready = Broadcast(room=GENERAL, event=event, payload=b"{}", id=event, seq=xid, sent_at="2026")
        assert rig.store.arrived(ready, Transaction(xid, Lsn(1), 0, ()))

    async def main() -> None:
        async with running(rig, stream=False):
            assert isinstance(await rig.append(message("stored")), Broadcast)
            delivered("taken back", next_xid - 1)
            delivered("ending", next_xid + 1000)
            assert [b.event for b in (await rig.store.replay(GENERAL, 0, 9)).messages] == ["stored", "ending"]
            assert [b.event for b in (await rig.store.replay(GENERAL, 0, 1)).messages] == ["ending"]
            assert (await rig.store.replay(RoomKey("other"), 0, 9)).messages == []

    trio.run(main)


def test_what_has_waited_too_long_behind_others_is_not_tried_any_more(
    prepared: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_store, "WAIT_SECONDS", 1.0)
    rig = Rig(prepared)
    blocker = prepared.connect(autocommit=False)
    blocker.cursor().execute("lock table realtime.messages in access exclusive mode")
    outcomes: list[Broadcast | str] = []

    async def main() -> None:
        async with running(rig, stream=False):
            for _ in range(message_store.BATCH_MAX + 3):
                rig.store.append(message(), outcomes.append, channel_id=None, sender=None)
            await eventually(lambda: len(outcomes) == message_store.BATCH_MAX + 3, seconds=1.5)
            assert set(outcomes) == {UNREACHABLE}

    trio.run(main)
    blocker.rollback()
    blocker.close()


def test_a_full_queue_is_told_at_once(prepared: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_store, "QUEUE_MAX", 5)
    rig = Rig(prepared)
    outcomes: list[Broadcast | str] = []

    async def main() -> None:
        for _ in range(7):
            rig.store.append(message(), outcomes.append, channel_id=None, sender=None)
        assert outcomes == [BUSY, BUSY]
        async with running(rig, stream=False):
            await eventually(lambda: len(outcomes) == 7)

    trio.run(main)
    assert sum(isinstance(outcome, Broadcast) for outcome in outcomes) == 5
