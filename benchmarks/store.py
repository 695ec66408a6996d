"""Stored broadcasts: how many a second one node stores, answered after their commit, and how long each waits.

The store on a private PostgreSQL with the schema as ``init`` makes it: a registered channel, its trigger, foreign key
and indexes, one NOTIFY per message; alone, in a process that reads every message back from its slot and drops it, and
as part of a daemon whose clients broadcast over sockets and are answered.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import trio

from benchmarks import rig
from walstream.app import Daemon
from walstream.config import Config
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.wal_feed import WalFeed
from walstream.shell.database.channel_rows import Rows
from walstream.shell.database.postgres import Database, PgConnection
from walstream.shell.database.rows import scalar
from walstream.shell.wal.spill import FileSpill

MESSAGES = 40_000
SENDERS = 500
PACED = 2000
RUNS = 3
ROOM = RoomKey("bench")
TEXT = b"x" * 170
CLIENTS = 50
OK = b'"status":"ok"'


def main() -> None:
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        rig.execute(dsn, "insert into realtime.channels (slug, name) values ('bench', 'bench')")
        rows = []
        for name, reads in (("alone", False), ("reading them back", True)):
            full = [trio.run(_running, dsn, reads, _full_speed) for _ in range(RUNS)]
            paced = [trio.run(_running, dsn, reads, _paced) for _ in range(RUNS)]
            rows += [
                (f"{name}: messages/s", f"{_median(full, lambda run: MESSAGES / run.seconds):,.0f}"),
                (
                    f"{name}: processor time per message",
                    f"{_median(full, lambda run: run.cpu / MESSAGES) * 1e6:.0f} us",
                ),
                (f"{name}: waits p50, p99", _waits(full)),
                (f"{name}: at {PACED}/s: waits p50, p99", _waits(paced)),
            ]
        rows += _through_sockets(dsn)
        rig.report(f"stored broadcasts, {SENDERS} senders with one under way each, 200 bytes", rows)


def _through_sockets(dsn: str) -> list[tuple[str, str]]:
    """A daemon's clients, each alone on a registered channel of its own, send again whenever they are answered."""
    rig.execute(dsn, f"insert into realtime.channels (slug, name) select n, n from generate_series(1, {CLIENTS}) n")
    daemon = rig.Daemon(dsn, rig.free_port(), max_messages_per_second="0")
    try:
        sockets = {_enter(daemon.port, f"realtime:{n}"): f"realtime:{n}" for n in range(1, CLIENTS + 1)}
        rates, used = [], []
        for _ in range(RUNS):
            cpu = daemon.cpu_seconds()
            rates.append(MESSAGES / _exchange(sockets))
            used.append((daemon.cpu_seconds() - cpu) / MESSAGES)
    finally:
        daemon.stop()
    return [
        ("over sockets: messages/s", f"{rig.median(rates):,.0f}"),
        ("over sockets: processor time per message", f"{rig.median(used) * 1e6:.0f} us"),
    ]


def _enter(port: int, topic: str) -> socket.socket:
    raw = rig.connect(port)
    config = {"broadcast": {"ack": True}, "presence": {"enabled": False}, "postgres_changes": [], "private": False}
    raw.sendall(rig.masked(json.dumps(["1", "1", topic, "phx_join", {"config": config}])))
    seen = b""
    while OK not in seen:
        more = raw.recv(65536)
        if not more or b'"status":"error"' in seen:
            raise RuntimeError(f"join failed: {seen!r}")
        seen += more
    return raw


def _exchange(sockets: dict[socket.socket, str]) -> float:
    """Send ``MESSAGES`` in all, ``SENDERS`` under way at once. Returns the seconds until the last one is answered."""
    selector = selectors.DefaultSelector()
    frames = {}
    for raw, topic in sockets.items():
        payload = {"type": "broadcast", "event": "message", "payload": {"n": 1, "text": TEXT.decode()}}
        frames[raw] = rig.masked(json.dumps(["1", "2", topic, "broadcast", payload]))
        selector.register(raw, selectors.EVENT_READ, raw)
    share = SENDERS // len(sockets)
    started = time.perf_counter()
    for raw, frame in frames.items():
        raw.sendall(frame * share)
    sent, answered = share * len(sockets), 0
    while answered < MESSAGES:
        for key, _ in selector.select(30):
            data = key.data.recv(1 << 16)
            count = data.count(OK)
            if b'"status":"error"' in data or not data:
                raise RuntimeError(f"not stored: {data[:300]!r}")
            answered += count
            again = min(count, MESSAGES - sent)
            if again > 0:
                key.data.sendall(frames[key.data] * again)
                sent += again
    selector.close()
    return time.perf_counter() - started


_numbers = itertools.count()


class _Run(NamedTuple):
    seconds: float
    cpu: float
    waits: list[float]


def _median(runs: Sequence[_Run], of: Callable[[_Run], float]) -> float:
    return rig.median([of(run) for run in runs])


def _waits(runs: Sequence[_Run]) -> str:
    p50, p99 = (_median(runs, lambda run: rig.percentile(run.waits, share)) * 1000 for share in (0.5, 0.99))  # noqa: B023 - used at once
    return f"{p50:.1f} ms, {p99:.1f} ms"


async def _running(
    dsn: str,
    reads: bool,
    measure: Callable[[MessageStore, str], Awaitable[_Run]],
) -> _Run:
    """Measure a store that runs, with or without a slot that is read."""
    database = Database(dsn, "bench")
    store = MessageStore(database, Database(dsn, "bench (writer)", size=2), "realtime", LocalBus(LocalHub(), "bench"))
    channel_id = await database.run(_channel_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        if reads:
            # A slot of its own: what earlier runs have stored would be read again from an older one.
            slot = f"bench_{next(_numbers)}"
            daemon = Daemon(Config(database_url=dsn, slot=slot))
            daemon.pipeline.feed = WalFeed(Directory(Rows(database, "realtime")), store, FileSpill)
            nursery.start_soon(daemon.pipeline.feed.run)
            nursery.start_soon(daemon.reader.run)
        await trio.sleep(3)
        run = await measure(store, channel_id)
        nursery.cancel_scope.cancel()
    if reads:
        rig.execute(
            dsn, f"select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = '{slot}'"
        )
        rig.execute(dsn, f"select pg_drop_replication_slot('{slot}')")
    return run


def _message(number: int) -> Broadcast:
    return Broadcast(room=ROOM, event="message", payload=b'{"n": %d, "text": "%b"}' % (number, TEXT))


async def _full_speed(store: MessageStore, channel_id: str) -> _Run:
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

    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(SENDERS):
        send()
    await finished.wait()
    return _Run(time.perf_counter() - started, time.process_time() - cpu, waits)


async def _paced(store: MessageStore, channel_id: str) -> _Run:
    waits: list[float] = []

    def done(since: float, _: Broadcast | str) -> None:
        waits.append(time.perf_counter() - since)

    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(200):
        for number in range(PACED // 100):
            store.append(_message(number), partial(done, time.perf_counter()), channel_id=channel_id, sender="bench")
        await trio.sleep(0.01)
    await trio.sleep(1)
    return _Run(time.perf_counter() - started, time.process_time() - cpu, waits)


def _channel_id(connection: PgConnection) -> str:
    with connection.cursor() as cursor:
        cursor.execute("select id::text from realtime.channels where slug = 'bench'")
        return str(scalar(cursor))
