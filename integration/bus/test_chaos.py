"""Connections that end at random moments: whatever is missing has been told as a gap, and nothing comes twice."""

from __future__ import annotations

import random

import pytest
import trio

from integration.fixtures.postgres import TestDatabase
from tests.contracts.bus_contract import Ear, Running, running, said
from walstream.bus.items import BroadcastItem
from walstream.shell.channels.notify_bus import NotifyBus
from walstream.shell.database.postgres import PgConnection, connect

SECONDS = 6.0


def untold_losses(ear: Ear, sender: str) -> list[tuple[int, int]]:
    """Pairs of numbers that follow each other though others belong between them, and no gap was told between."""
    losses = []
    newest, gap = -1, False
    for node, item in ear.events:
        if (node, item) == ("", None):
            gap = True
        elif node == sender and isinstance(item, BroadcastItem):
            number = int(item.broadcast.event)
            if number != newest + 1 and not (gap and number > newest):
                losses.append((newest, number))
            newest, gap = number, False
    return losses


def test_a_loss_that_was_not_told_is_found() -> None:
    ear = Ear()
    for number in (0, 1, 3, 3):
        ear.item("a", said(number))
    ear.gap()
    ear.item("a", said(7))
    assert untold_losses(ear, "a") == [(1, 3), (3, 3)]


@pytest.mark.parametrize("secret", ["a secret of the cluster", ""])
def test_nothing_is_lost_silently_and_nothing_comes_twice(prepared: TestDatabase, secret: str) -> None:
    dice = random.Random(7)

    def open_connection(name: str) -> PgConnection:
        return connect(prepared.dsn, application_name=name)

    async def talk(node: Running) -> None:
        number = 0
        until = trio.current_time() + SECONDS
        while trio.current_time() < until:
            for _ in range(dice.randrange(1, 60)):
                node.bus.publish(said(number, 20_000 if dice.random() < 0.02 else dice.randrange(200)))
                number += 1
            await trio.sleep(dice.random() * 0.02)

    async def break_connections() -> None:
        while True:
            await trio.sleep(dice.random() * 0.6)
            await trio.to_thread.run_sync(
                prepared.query,
                "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where datname"
                " = current_database() and application_name like 'walstream (bus%' order by random() limit 1) one",
            )

    async def main() -> None:
        buses = [NotifyBus(open_connection, "realtime", name, secret) for name in "ab"]
        async with running(*buses) as (a, b):
            async with trio.open_nursery() as breaking:
                breaking.start_soon(break_connections)
                async with trio.open_nursery() as talking:
                    talking.start_soon(talk, a)
                    talking.start_soon(talk, b)
                breaking.cancel_scope.cancel()
            for one, other in ((a, b), (b, a)):
                while "-1" not in other.ear.heard(one.node):
                    one.bus.publish(said(-1))
                    await trio.sleep(0.1)
                other.ear.events = [event for event in other.ear.events if event[1] != said(-1)]
                heard = other.ear.heard(one.node)
                assert len(heard) > 1000
                assert untold_losses(other.ear, one.node) == []

    trio.run(main)
