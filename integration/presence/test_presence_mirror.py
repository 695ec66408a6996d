"""Presence in the database: a node's own rows through everything that happens to them, and what SQL says to clients."""

from __future__ import annotations

import contextlib
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psycopg2.extensions
import pytest
import trio

from integration.fixtures.postgres import TestDatabase
from integration.presence.conftest import NODE, Mirrored, until
from tests.support import run
from walstream.channel.presence_rows import NAME_BYTES_MAX
from walstream.shell.channels import presence_mirror


@contextlib.asynccontextmanager
async def mirroring(*mirrored: Mirrored) -> AsyncIterator[None]:
    """Run mirrors for one block; they say goodbye at its end."""
    async with trio.open_nursery() as nursery:
        for one in mirrored:
            nursery.start_soon(one.mirror.run)
        yield
        nursery.cancel_scope.cancel()
    for one in mirrored:
        await one.statements.aclose()


def mirror_of(database: TestDatabase, scene: Callable[[Mirrored], Awaitable[None]]) -> Mirrored:
    """Run ``scene`` beside a mirror."""
    one = Mirrored(database)

    async def main() -> None:
        async with mirroring(one):
            await scene(one)

    run(main)
    return one


@pytest.fixture
def listening(prepared: TestDatabase) -> Iterator[psycopg2.extensions.connection]:
    """A connection that hears the table's notifications."""
    connection = prepared.connect()
    with connection.cursor() as cursor:
        cursor.execute('listen "realtime:presence"')
    yield connection
    connection.close()


def test_a_person_comes_changes_goes_and_stays_known(prepared: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("e", "ada", b'{"level": 3, "status": "away"}')
        await until(lambda: on.rows == [("ada", "lobby", "away", {"level": 3, "status": "away"})])
        on.track("e", "ada", b'{"level": 4}')
        await until(lambda: on.rows == [("ada", "lobby", "online", {"level": 4})])
        on.untrack("e")
        await until(lambda: on.rows == [("ada", "lobby", "offline", {"level": 4})])
        on.track("f", "ada", b"{}")
        await until(lambda: on.rows == [("ada", "lobby", "online", {})])

    on = mirror_of(prepared, scene)
    assert on.statuses == {"ada": "offline"}, "the node has gone"
    assert prepared.scalar("select now() - last_seen_at < interval '1 minute' from realtime.presence")


def test_one_row_for_all_of_a_persons_entries_in_a_topic(prepared: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("phone", "ada", b'{"at": "phone"}')
        on.track("desk", "ada", b'{"at": "desk"}')
        on.track("other", "ada", topic="kitchen")
        on.track("anonymous", key="a-key")
        await until(lambda: len(on.rows) == 3)
        assert on.rows[1:] == [("ada", "kitchen", "online", {}), ("ada", "lobby", "online", {"at": "desk"})]
        assert on.rows[0][0] == "a-key"
        on.untrack("desk")
        await until(lambda: on.rows[2] == ("ada", "lobby", "online", {"at": "phone"}))
        on.untrack("phone")
        await until(lambda: on.rows[2] == ("ada", "lobby", "offline", {"at": "phone"}))
        assert on.rows[1][2] == "online"

    mirror_of(prepared, scene)


def test_a_registered_channel_is_tied_to_its_rows_and_takes_them_along(prepared: TestDatabase) -> None:
    prepared.execute("insert into realtime.channels (name, slug) values ('Lobby', 'lobby')")

    async def scene(on: Mirrored) -> None:
        on.track("e", "ada")
        await until(lambda: on.statuses == {"ada": "online"})
        assert prepared.scalar("select count(*) from realtime.presence where channel_id is not null") == 1
        prepared.execute("delete from realtime.channels")
        await until(lambda: prepared.query("select user_id, channel_id from realtime.presence") == [("ada", None)])

    mirror_of(prepared, scene)


def test_who_does_nothing_is_away_until_he_does_something(prepared: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("a", "ada")
        on.track("e", "eve")
        await until(lambda: on.statuses == {"ada": "online", "eve": "online"})
        on.now = 299.0
        on.mirror.touched("e")
        on.mirror.touched("nobody's")
        on.now = 300.0
        await until(lambda: on.statuses == {"ada": "away", "eve": "online"})
        on.mirror.touched("a")
        await until(lambda: on.statuses == {"ada": "online", "eve": "online"})

    mirror_of(prepared, scene)


def test_whoever_tampers_with_a_nodes_rows_the_node_is_right(prepared: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("a", "ada")
        on.track("e", "eve")
        await until(lambda: len(on.rows) == 2)
        prepared.execute("select realtime.cleanup_stale_presence(0)")
        await until(lambda: on.statuses == {"ada": "online", "eve": "online"})
        prepared.execute("truncate realtime.presence")
        await until(lambda: on.statuses == {"ada": "online", "eve": "online"})
        prepared.execute(
            "insert into realtime.presence (user_id, topic, node_id) values ('nobody', 'lobby', %s)", (NODE,)
        )
        await until(lambda: on.statuses == {"ada": "online", "eve": "online", "nobody": "offline"})

    mirror_of(prepared, scene)


def test_rows_of_an_earlier_boot_are_taken_over(prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.presence (user_id, topic, node_id, metadata) values"
        " ('ada', 'lobby', %(node)s, '{\"old\": 1}'), ('gone', 'lobby', %(node)s, '{}')",
        {"node": NODE},
    )

    async def scene(on: Mirrored) -> None:
        on.track("a", "ada", b'{"new": 1}')
        await until(lambda: on.rows == [("ada", "lobby", "online", {"new": 1}), ("gone", "lobby", "offline", {})])

    mirror_of(prepared, scene)


def test_who_is_there_for_long_was_seen_lately(prepared: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("a", "ada")
        await until(lambda: on.rows)
        prepared.execute("update realtime.presence set last_seen_at = now() - interval '200 s'")
        await until(lambda: prepared.scalar("select last_seen_at > now() - interval '60 s' from realtime.presence"))

    mirror_of(prepared, scene)


def test_what_postgresql_cannot_hold_harms_nobody_else(prepared: TestDatabase) -> None:
    hostile = {
        "nul": rb'{"a": "\u0000"}',
        "half": rb'{"a": "\ud800"}',
        "huge": b'{"a": 1e999999}',
        "deep": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "x'); drop table realtime.presence; --": b'{"a": "%s \'; \\""}',
        "nul\0in the name": b"{}",
        "": b"{}",
        "y" * (NAME_BYTES_MAX + 1): b"{}",
        "".join(chr(33 + number * 7919 % 50_000) for number in range(600)): b'{"long": 1}',
        "🙂 مرحبا": b'{"a": "\xf0\x9f\x99\x82"}',
    }

    async def scene(on: Mirrored) -> None:
        for number, (user, meta) in enumerate(hostile.items()):
            on.track(f"e{number}", user, meta, key="")
            on.track(f"good{number}", f"good {number}")
        await until(lambda: len(on.rows) == 2 * len(hostile) - 1)
        found = {user: meta for user, _, _, meta in on.rows}
        assert [found[name] for name in ("nul", "half", "huge", "deep")] == [{}] * 4
        assert found["x'); drop table realtime.presence; --"] == {"a": "%s '; \""}
        assert found["nulin the name"] == found["e6"] == {}
        assert found["🙂 مرحبا"] == {"a": "🙂"}

    mirror_of(prepared, scene)


def test_a_server_that_crashed_is_told_again(fragile: TestDatabase) -> None:
    async def scene(on: Mirrored) -> None:
        on.track("a", "ada", b'{"level": 1}')
        on.track("e", "eve")
        await until(lambda: len(on.rows) == 2)
        fragile.close()
        fragile.cluster.kill()
        on.untrack("e")
        on.track("n", "new")
        on.track("s", "short")
        on.untrack("s")
        await until(lambda: on.mirror._attempts.has_failed)
        fragile.cluster.start()
        await until(lambda: on.statuses == {"ada": "online", "new": "online"})
        assert on.rows[0] == ("ada", "lobby", "online", {"level": 1})

    mirror_of(fragile, scene)


def test_what_sql_tracks_reaches_clients(
    prepared: TestDatabase, listening: psycopg2.extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(on: Mirrored) -> None:
        await until(lambda: on.told)
        assert on.diff() == {}

        async def told() -> None:
            """As the bus hands notifications on."""
            count = len(on.told)
            await until(lambda: select.select([listening], [], [], 0)[0])
            listening.poll()
            for notification in listening.notifies:
                on.mirror.notified(notification.payload)
            listening.notifies.clear()
            await until(lambda: len(on.told) > count)

        prepared.execute(
            "insert into realtime.presence (user_id, topic, metadata) values ('ada', 'lobby', '{\"level\": 3}'),"
            " ('eve', null, '{}'), ('odd', 'kitchen', '[1]'), ('off', 'lobby', '{}')"
        )
        await told()
        assert {(entry.room.subtopic, entry.key) for entry in on.told[-1]} == {
            ("lobby", "ada"), ("lobby", "off"), ("kitchen", "odd"),
        }  # fmt: skip
        assert next(entry.meta for entry in on.told[-1] if entry.key == "odd") == (
            b'{"status": "online", "user_id": "odd", "metadata": [1]}'
        )
        (meta,) = on.diff()["joins"]["ada"]
        first = meta.pop("phx_ref")
        assert meta == {"user_id": "ada", "status": "online", "level": 3}

        prepared.execute("update realtime.presence set last_seen_at = now() where user_id = 'ada'")
        await told()
        assert on.diff() == {}, "nothing but the time has changed"

        prepared.execute("update realtime.presence set status = 'away' where user_id = 'ada'")
        await told()
        diff = on.diff()
        assert diff["joins"]["ada"][0]["phx_ref_prev"] == diff["leaves"]["ada"][0]["phx_ref"] == first
        assert diff["joins"]["ada"][0]["status"] == "away"

        prepared.execute("update realtime.presence set status = 'offline' where user_id = 'off'")
        await told()
        assert list(on.diff()["leaves"]) == ["off"]
        prepared.execute("delete from realtime.presence where user_id = 'ada'")
        await told()
        assert list(on.diff()["leaves"]) == ["ada"]

    mirror_of(prepared, scene)


def test_a_private_channels_rows_belong_to_its_private_room(prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.channels (name, slug, type) values ('A', 'a', 'private'), ('B', 'b', 'public')"
    )
    prepared.execute("insert into realtime.presence (user_id, topic) values ('u', 'a'), ('u', 'b'), ('u', 'c')")

    async def scene(on: Mirrored) -> None:
        await until(lambda: on.told)
        assert {entry.room: entry.room.private for entry in on.told[-1]} == {
            ("a", True): True, ("b", False): False, ("c", False): False,
        }  # fmt: skip
        on.mirror.again()
        await until(lambda: len(on.told) > 1)
        assert on.told[0] == on.told[1], "the same refs"

    mirror_of(prepared, scene)


def test_what_nobody_touches_becomes_offline_and_is_forgotten(
    prepared: TestDatabase, listening: psycopg2.extensions.connection
) -> None:
    prepared.execute(
        "insert into realtime.presence (user_id, topic, status, last_seen_at) values"
        " ('fresh', 'lobby', 'online', now() - interval '290 s'), ('stale', 'lobby', 'away', now() - interval '301 s'),"
        " ('everywhere', null, 'online', now() - interval '301 s'),"
        " ('old', 'lobby', 'offline', now() - interval '23 h'),"
        " ('older', 'lobby', 'offline', now() - interval '25 h')"
    )

    async def scene(on: Mirrored) -> None:
        wanted = [("everywhere", "offline"), ("fresh", "online"), ("old", "offline"), ("stale", "offline")]
        await until(lambda: prepared.query("select user_id, status from realtime.presence order by 1") == wanted)

        def updates() -> int:
            listening.poll()
            return [notification.payload.split(" ")[0] for notification in listening.notifies].count("UPDATE")

        # A row is seen before its notification comes.
        await until(lambda: updates() >= 2)
        assert updates() == 2, "clients are told of those who left"

    mirror_of(prepared, scene)


def test_a_dead_nodes_rows_are_swept_and_a_living_ones_are_not(prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.nodes (node_id, last_seen_at) values"
        " ('alive', now() - interval '50 s'), ('dead', now() - interval '61 s')"
    )
    prepared.execute(
        "insert into realtime.presence (user_id, topic, node_id) values"
        " ('a', 'lobby', 'alive'), ('b', 'lobby', 'dead'), ('c', 'lobby', 'unknown')"
    )

    async def scene(on: Mirrored) -> None:
        wanted = [("a", "online"), ("b", "offline"), ("c", "offline")]
        await until(lambda: prepared.query("select user_id, status from realtime.presence order by 1") == wanted)

    mirror_of(prepared, scene)


def test_who_sweeps_leaves_its_own_rows_alone_and_does_nothing_while_another_does(prepared: TestDatabase) -> None:
    statements = presence_mirror._Statements("realtime", NODE)
    prepared.execute(
        "insert into realtime.presence (user_id, topic, node_id, last_seen_at)"
        " select 'u', 'lobby', node, now() - interval '1 h' from unnest(array['', 'dead', %s]) as node",
        (NODE,),
    )
    other, ours = prepared.connect(autocommit=False), prepared.connect()
    assert statements.sweep(other) == (1, 1, 0)
    other.rollback()
    assert statements.sweep(other) == (1, 1, 0)
    assert statements.sweep(ours) == (0, 0, 0), "the other one has not committed yet"
    other.commit()
    assert statements.sweep(ours) == (0, 0, 0), "nothing is left to do"
    other.close()
    ours.close()


def test_two_nodes_keep_to_their_own_rows(prepared: TestDatabase) -> None:
    near, far = Mirrored(prepared, "near"), Mirrored(prepared, "far")
    prepared.execute("insert into realtime.nodes (node_id) values ('near'), ('far')")

    async def main() -> None:
        async with mirroring(near):
            near.track("e", "ada")
            async with mirroring(far):
                far.track("e", "ada")
                await until(lambda: near.statuses == far.statuses == {"ada": "online"})
            assert (near.statuses, far.statuses) == ({"ada": "online"}, {"ada": "offline"})

    run(main)


def test_many_at_once_are_few_statements(prepared: TestDatabase) -> None:
    count = presence_mirror.BATCH_ROWS * 4

    async def scene(on: Mirrored) -> None:
        for number in range(count):
            on.track(f"e{number}", f"u{number}", b'{"name": "Ada"}')
        await until(lambda: len(on.rows) == count)
        moments = prepared.scalar("select count(distinct last_seen_at) from realtime.presence")
        assert moments <= 5

    on = mirror_of(prepared, scene)
    assert set(on.statuses.values()) == {"offline"}
