"""Stored broadcasts: how many a second one node stores, answered after their commit, and how long each waits.

The store alone, on a private PostgreSQL with the schema as ``init`` makes it: a registered channel, its trigger,
foreign key and indexes, one NOTIFY per message. What clients and the WAL cost comes on top, and is measured elsewhere.
"""

from __future__ import annotations

import json
import time
from functools import partial

import trio

from benchmarks import rig
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.database.postgres import Database, PgConnection
from walstream.shell.database.rows import scalar

MESSAGES = 60_000
SENDERS = 500
PACED = 2000
RUNS = 3


def main() -> None:
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        rig.execute(dsn, "insert into realtime.channels (slug, name) values ('bench', 'bench')")
        for fsync in ("off", "on"):
            rig.execute(dsn, f"alter system set fsync = {fsync}", "select pg_reload_conf()")
            full = [trio.run(_full_speed, dsn) for _ in range(RUNS)]
            paced = [trio.run(_paced, dsn) for _ in range(RUNS)]
            rig.report(
                f"stored broadcasts, {SENDERS} senders with one message under way each, 200 bytes, fsync {fsync}",
                [
                    ("messages/s", f"{rig.median([rate for rate, _ in full]):,.0f}"),
                    ("waits p50", f"{rig.median([rig.percentile(waits, 0.5) for _, waits in full]) * 1000:.1f} ms"),
                    ("waits p99", f"{rig.median([rig.percentile(waits, 0.99) for _, waits in full]) * 1000:.1f} ms"),
                    (
                        f"at {PACED}/s: waits p50",
                        f"{rig.median([rig.percentile(w, 0.5) for w in paced]) * 1000:.1f} ms",
                    ),
                    (
                        f"at {PACED}/s: waits p99",
                        f"{rig.median([rig.percentile(w, 0.99) for w in paced]) * 1000:.1f} ms",
                    ),
                ],
            )


async def _store(dsn: str) -> tuple[MessageStore, str]:
    """A store, and the id of the channel."""
    database = Database(dsn, "bench")
    store = MessageStore(database, Database(dsn, "bench (writer)", size=2), "realtime", LocalBus(LocalHub(), "bench"))
    return store, await database.run(_channel_id)


def _message(number: int) -> Broadcast:
    payload = json.dumps({"n": number, "text": "x" * 170}).encode()
    return Broadcast(room=RoomKey("bench"), event="message", payload=payload)


async def _full_speed(dsn: str) -> tuple[float, list[float]]:
    """Messages a second, and how long each has waited."""
    store, channel_id = await _store(dsn)
    waits: list[float] = []
    finished = trio.Event()

    def send() -> None:
        number = len(waits)
        store.append(_message(number), partial(done, time.perf_counter()), channel_id=channel_id, sender="bench")

    def done(since: float, outcome: Broadcast | str) -> None:
        if isinstance(outcome, str):
            raise SystemExit(f"not stored: {outcome}")
        waits.append(time.perf_counter() - since)
        if len(waits) + SENDERS <= MESSAGES:
            send()
        elif len(waits) == MESSAGES:
            finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await trio.sleep(1)
        started = time.perf_counter()
        for _ in range(SENDERS):
            send()
        await finished.wait()
        seconds = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    return MESSAGES / seconds, waits


async def _paced(dsn: str) -> list[float]:
    """How long each message has waited, at a steady rate."""
    store, channel_id = await _store(dsn)
    waits: list[float] = []

    def waited(since: float, _: Broadcast | str) -> None:
        waits.append(time.perf_counter() - since)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await trio.sleep(1)
        for _ in range(200):
            for number in range(PACED // 100):
                since = time.perf_counter()
                store.append(
                    _message(number),
                    partial(waited, since),
                    channel_id=channel_id, sender="bench",
                )  # fmt: skip
            await trio.sleep(0.01)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return waits


def _channel_id(connection: PgConnection) -> str:
    with connection.cursor() as cursor:
        cursor.execute("select id::text from realtime.channels where slug = 'bench'")
        return str(scalar(cursor))
