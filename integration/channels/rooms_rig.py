"""The WAL's side and the rooms' side of a daemon in the test's own process, without clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from integration.fixtures.postgres import TestDatabase
from walstream.auth.tokens import Claims
from walstream.history.ring import Ring
from walstream.model import Catalog
from walstream.rooms import Broadcast, RoomKey
from walstream.router import Router
from walstream.shell.channels.bus import Bus
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.seats import Seat
from walstream.shell.channels.wal_feed import WalFeed
from walstream.shell.database.access import TableAccess
from walstream.shell.database.channel_rows import Rows
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.health import Health
from walstream.shell.wal.pipeline import Pipeline, PipelineSettings
from walstream.shell.wal.publication_keeper import PublicationKeeper
from walstream.shell.wal.slot_keeper import Reading
from walstream.shell.wal.spill import FileSpill
from walstream.shell.wal.wal_reader import WalReader
from walstream.telemetry.metrics import Metrics

MIB = 1 << 20
GENERAL = RoomKey("general")


class Rig:
    """Every part made and joined; ``heard``: the messages that clients would get from the WAL."""

    def __init__(self, database: TestDatabase, decoder: str = "wal2json", slot: str = "rig", bus: Bus | None = None):
        dsn = database.dsn
        self.database = database
        self.slot = f"{slot}_{database.name}"
        self.health = Health(version="0", node="rig", heartbeat_seconds=10)
        pool = Database(dsn, "rig")
        self.directory = Directory(Rows(pool, "realtime"))
        self.store = MessageStore(
            pool, Database(dsn, "rig (writer)", size=2), "realtime", bus or LocalBus(LocalHub(), "rig")
        )
        self.feed = WalFeed(self.directory, self.store, FileSpill)
        self.heard: list[Broadcast] = []
        self.feed.on_message = lambda broadcast, _: self.heard.append(broadcast)
        ring = Ring(bytes_max=64 * MIB, seconds=300, wal_bytes=128 * MIB)
        catalog = Catalog()
        access = TableAccess(catalog)
        router = Router(catalog, access.guard)
        self.pipeline = Pipeline(
            PipelineSettings(),
            catalog=catalog,
            ring=ring,
            fanout=Fanout(router, ring, access, max_record_bytes=MIB),
            access=access,
            database=pool,
            keeper=PublicationKeeper(pool, "realtime"),
            returned=lambda content: None,
        )
        self.pipeline.feed = self.feed
        self.reader = WalReader(Reading(dsn, self.slot, decoder), self.pipeline, self.health, Metrics())

    @property
    def is_streaming(self) -> bool:
        return self.health.reader == "streaming"

    @property
    def events(self) -> list[str]:
        return [broadcast.event for broadcast in self.heard]

    async def append(self, broadcast: Broadcast, **more: object) -> Broadcast | str:
        """Store a broadcast and wait for what becomes of it."""
        outcomes: list[Broadcast | str] = []
        values: dict[str, Any] = {"channel_id": None, "sender": None, **more}
        self.store.append(broadcast, outcomes.append, **values)
        await eventually(lambda: outcomes)
        (outcome,) = outcomes
        return outcome

    async def seat(self, room: RoomKey, claims: Claims, ended: Callable[[str, str], None] | None = None) -> Seat | str:
        """Ask the directory, and wait for the answer."""
        answers: list[Seat | str] = []
        self.directory.ask(Seat(room, claims, ended=ended), answers.append)
        await eventually(lambda: answers)
        return answers[0]


async def eventually(holds: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait until ``holds``. Fails after ``seconds``."""
    with trio.move_on_after(seconds):
        while not holds():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"did not come true within {seconds} s")


@asynccontextmanager
async def running(rig: Rig, *, stream: bool = True) -> AsyncIterator[Rig]:
    """The rig at work, streaming from its slot unless it is not to."""
    async with trio.open_nursery() as nursery:
        for task in (rig.directory.run, rig.store.run, rig.feed.run):
            nursery.start_soon(task)
        await eventually(lambda: rig.directory.is_loaded)
        if stream:
            nursery.start_soon(rig.reader.run)
            await eventually(lambda: rig.is_streaming)
        yield rig
        nursery.cancel_scope.cancel()


def message(event: str = "e", payload: bytes = b'{"n": 1}', room: RoomKey = GENERAL) -> Broadcast:
    """Somebody's broadcast, before it is stored."""
    return Broadcast(room=room, event=event, payload=payload)


def register(database: TestDatabase, slug: str = "general", type_: str = "public", **more: object) -> str:
    """Register a channel as an operator does by SQL. Returns its id."""
    columns = {"slug": slug, "name": slug, "type": type_, **more}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    return str(
        database.scalar(
            f"insert into realtime.channels ({names}) values ({marks}) returning id::text", list(columns.values())
        )
    )
