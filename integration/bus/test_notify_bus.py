"""The bus over PostgreSQL: the contract of all buses, and what hostile or broken surroundings do to it."""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from integration.fixtures.postgres import TestDatabase
from tests.contracts.bus_contract import PATIENCE_SECONDS, BusContract, Running, running, said
from walstream.bus.items import BroadcastItem, StoredItem
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.notify_bus import NotifyBus
from walstream.shell.database.postgres import PgConnection, connect
from walstream.telemetry.metrics import Metrics

SECRET = "a secret of the cluster"
CHANNEL = "realtime:bus"


class World:
    """Buses on one database."""

    def __init__(self, database: TestDatabase) -> None:
        self.database = database

    def open(self, name: str) -> PgConnection:
        return connect(self.database.dsn, application_name=name)

    def bus(self, name: str, secret: str = SECRET, **options: Any) -> NotifyBus:
        return NotifyBus(self.open, "realtime", name, secret, metrics=Metrics(), **options)

    def notify(self, payload: str, channel: str = CHANNEL) -> None:
        self.database.execute("select pg_notify(%s, %s)", (channel, payload))

    def terminate(self, application_name: str) -> int:
        return len(
            self.database.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and application_name = %s",
                (application_name,),
            )
        )


@pytest.fixture
def world(prepared: TestDatabase) -> World:
    return World(prepared)


def refused(bus: NotifyBus, reason: str) -> float:
    assert bus._hearing._metrics is not None
    registry: CollectorRegistry = bus._hearing._metrics.registry
    return registry.get_sample_value("walstream_bus_refused_total", {"reason": reason}) or 0.0


def referred(node: Running) -> list[str]:
    return [found for _, item in node.ear.events if isinstance(item, StoredItem) for found in item.ids]


class TestNotifyBus(BusContract):
    @pytest.fixture(autouse=True)
    def _world(self, world: World) -> None:
        self.world = world

    def make(self, name: str) -> NotifyBus:
        return self.world.bus(name)

    def commit(self, pairs: list[tuple[str, str]]) -> None:
        connection = self.world.database.connect(autocommit=False)
        with connection.cursor() as cursor:
            for pair in pairs:
                cursor.execute("select pg_notify(%s, %s)", pair)
        connection.commit()
        connection.close()


class TestWithoutASecret(TestNotifyBus):
    def make(self, name: str) -> NotifyBus:
        return self.world.bus(name, "")

    def test_a_transaction_carries_items_along(self) -> None:
        """Only ids of stored messages: nothing else may travel unsealed."""
        stored = BroadcastItem(Broadcast(room=RoomKey("r"), event="e", payload=b"secret", id=str(uuid.uuid4()), seq=1))

        async def main() -> None:
            async with running(self.make("a"), self.make("b")) as (a, b):
                pairs = a.bus.notifications([stored, said("ephemeral")])
                assert [payload for _, payload in pairs] == [f"m{stored.broadcast.id}"]
                self.commit(pairs)
                await b.ear.until(lambda: ("", StoredItem((stored.broadcast.id,))) in b.ear.events)

        trio.run(main)


def test_garbage_forged_oversized_and_repeated_notifications_are_not_heeded(world: World) -> None:
    async def main() -> None:
        a, b = world.bus("a"), world.bus("b")
        async with running(a, b) as (first, second):
            listening = world.database.connect()
            cursor = listening.cursor()
            cursor.execute(f'listen "{CHANNEL}"')
            first.bus.publish(said("secret text"))
            await second.ear.until(lambda: second.ear.heard(first.node))
            # Sessions are told one after the other: that the node has heard it does not mean that this one has.
            with trio.fail_after(PATIENCE_SECONDS):
                while not listening.notifies:
                    await trio.lowlevel.wait_readable(listening.fileno())
                    listening.poll()
            overheard = [notify.payload for notify in listening.notifies]
            listening.close()
            assert not any("secret" in payload for payload in overheard)
            for payload in [
                *overheard,
                "",
                "x",
                "s",
                "s!!!",
                "sAAAA",
                "s" + "A" * 7996,
                f"r{uuid.uuid4()}",
                "mno uuid",
            ]:
                world.notify(payload)
            flipped = overheard[0]
            world.notify(flipped[:40] + ("A" if flipped[40] != "A" else "B") + flipped[41:])
            first.bus.publish(said("after"))
            await second.ear.until(lambda: second.ear.heard(first.node)[-1:] == ["after"])
            assert second.ear.heard(first.node) == ["secret text", "after"]
            assert second.ear.gaps == 1
            assert refused(b, "replayed") >= 1
            assert refused(b, "forged") >= 2
            assert refused(b, "malformed") >= 4

    trio.run(main)


def test_nodes_of_another_cluster_do_not_hear_each_other(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a"), world.bus("b")) as (a, b), trio.open_nursery() as nursery:
            stranger = Running(world.bus("c", "another secret"))
            await nursery.start(stranger.run)
            await stranger.ear.until(lambda: stranger.ear.gaps)
            a.bus.publish(said("x"))
            await b.ear.until(lambda: b.ear.heard(a.node) == ["x"])
            assert stranger.ear.events == [("", None)]
            assert stranger.bus.peers == frozenset()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_reference_to_a_stored_message_is_told_once_however_often_it_comes(world: World) -> None:
    async def main() -> None:
        stored = str(uuid.uuid4())
        b = world.bus("b")
        async with running(b) as (node,):
            for _ in range(3):
                world.notify(f"m{stored}")
            world.notify(f"m{uuid.UUID(int=1)}")
            await node.ear.until(lambda: str(uuid.UUID(int=1)) in referred(node))
            assert referred(node) == [stored, str(uuid.UUID(int=1))]

    trio.run(main)


def test_a_flood_of_references_is_bounded(world: World) -> None:
    async def main() -> None:
        b = world.bus("b")
        async with running(b) as (node,):
            world.database.execute(
                "select pg_notify(%s, 'm' || gen_random_uuid()) from generate_series(1, 5000)", (CHANNEL,)
            )
            await node.ear.until(lambda: refused(b, "crowded") > 0)
            assert 1000 <= len(referred(node)) < 2000

    trio.run(main)


def test_a_lost_listening_connection_is_a_gap_and_no_lost_peer(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a", node_timeout_seconds=1.0), world.bus("b", node_timeout_seconds=1.0)) as (
            a,
            b,
        ):
            assert world.terminate("walstream (bus, listening)") == 2
            await b.ear.until(lambda: b.ear.gaps == 2)
            await a.ear.until(lambda: a.ear.gaps == 2)
            a.bus.publish(said("again"))
            await b.ear.until(lambda: b.ear.heard(a.node) == ["again"])
            assert (a.node, None) not in b.ear.events
            assert b.ear.gaps == 2

    trio.run(main)


def test_a_lost_speaking_connection_loses_nothing_that_was_waiting(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a"), world.bus("b")) as (a, b):
            for number in range(200):
                if number % 50 == 0:
                    world.terminate("walstream (bus)")
                a.bus.publish(said(number))
                await trio.sleep(0.002)
            await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["199"])
            assert b.ear.heard(a.node) == [str(number) for number in range(200)]
            assert b.ear.gaps == 1

    trio.run(main)


def test_what_was_dropped_is_a_gap(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a"), world.bus("b")) as (a, b):
            for _ in range(3):
                a.bus.publish(said("too much", 6_000_000))
            a.bus.publish(said("after"))
            await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["after"])
            assert b.ear.heard(a.node) == ["too much", "too much", "after"]
            assert b.ear.gaps == 2
            assert isinstance(a.bus, NotifyBus)
            assert a.bus.dropped == 1

    trio.run(main)


def test_a_node_that_dies_without_a_word_is_lost(world: World) -> None:
    async def main() -> None:
        a = world.bus("a", node_timeout_seconds=1.0)
        async with running(a, world.bus("b", node_timeout_seconds=1.0)) as (first, second):
            a.take = lambda *, last: []  # type: ignore[method-assign]  # it says nothing any more, not even goodbye
            await second.ear.until(lambda: (first.node, None) in second.ear.events)
            assert second.bus.peers == frozenset()
            del a.take
            await second.meets(first)

    trio.run(main)


def test_another_channel_shares_the_connection(world: World) -> None:
    async def main() -> None:
        heard: list[str] = []
        began: list[None] = []
        bus = world.bus("a")
        bus.also("realtime:presence", heard.append, partial(began.append, None))
        async with running(bus) as (node,):
            assert len(began) == 1
            world.notify("one", "realtime:presence")
            world.notify(f"m{uuid.UUID(int=1)}")
            await node.ear.until(lambda: len(node.ear.events) > 1)
            assert heard == ["one"]
            world.terminate("walstream (bus, listening)")
            await node.ear.until(lambda: node.ear.gaps == 2)
            assert len(began) == 2

    trio.run(main)


def test_a_node_says_goodbye_within_a_second(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a"), world.bus("b")) as (a, b):
            started = time.monotonic()
            await a.stop()
            assert time.monotonic() - started < 1.5
            await b.ear.until(lambda: (a.node, None) in b.ear.events)

    trio.run(main)


def test_large_items_leave_no_rows_behind(world: World) -> None:
    async def main() -> None:
        async with running(world.bus("a"), world.bus("b")) as (a, b):
            a.bus.publish(said("large", 50_000))
            await b.ear.until(lambda: b.ear.heard(a.node) == ["large"])
            assert isinstance(a.bus, NotifyBus)
            [(payload,)] = world.database.query("select payload from realtime.bus_payloads")
            assert b"large" not in bytes(payload)
            world.database.execute("update realtime.bus_payloads set inserted_at = now() - interval '61 s'")
            await a.bus._mouth.do(a.bus._sweep_payloads)
            assert world.database.scalar("select count(*) from realtime.bus_payloads") == 0

    trio.run(main)


@pytest.mark.timeout(60)
def test_without_a_database_publishing_harms_nobody_and_the_end_is_quick(world: World) -> None:
    async def main() -> None:
        bus = NotifyBus(
            lambda name: connect("host=127.0.0.1 port=1 connect_timeout=1", application_name=name),
            "realtime",
            "a",
            SECRET,
        )
        node = Running(bus)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            for number in range(1000):
                bus.publish(said(number))
            assert bus.notifications([said("x")]) == []
            started = time.monotonic()
            await node.stop()
            assert time.monotonic() - started < 1.0

    trio.run(main)


def test_the_daemons_own_role_is_enough_and_clients_have_no_way_in(world: World) -> None:
    def as_daemon(name: str) -> PgConnection:
        return connect(f"{world.database.dsn} options='-c role=walstream_daemon'", application_name=name)

    async def main() -> None:
        a, b = (NotifyBus(as_daemon, "realtime", name, SECRET) for name in "ab")
        async with running(a, b) as (first, second):
            first.bus.publish(said("large", 50_000))
            await second.ear.until(lambda: second.ear.heard(first.node) == ["large"])
            await a._mouth.do(a._sweep_payloads)

    trio.run(main)
    for role in ("anon", "authenticated"):
        for privilege in ("select", "insert", "update", "delete"):
            assert not world.database.scalar(
                "select has_table_privilege(%s, 'realtime.bus_payloads', %s)", (role, privilege)
            )


def test_a_schema_with_a_long_name_and_capitals_has_a_bus(world: World) -> None:
    schema = "Ä" * 30
    world.database.execute(
        f'create schema "{schema}"; create table "{schema}".bus_payloads (like realtime.bus_payloads including all)'
    )

    async def main() -> None:
        buses = [NotifyBus(world.open, schema, name, SECRET) for name in "ab"]
        async with running(*buses) as (first, second):
            first.bus.publish(said("large", 50_000))
            await second.ear.until(lambda: second.ear.heard(first.node) == ["large"])

    trio.run(main)
