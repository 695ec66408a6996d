"""Two nodes that talk through NOTIFY: how much later the far one is, and what it costs the server."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import psycopg2
import trio

from benchmarks import rig
from walstream.bus.items import BroadcastItem, Item
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.notify_bus import NotifyBus
from walstream.shell.database.postgres import connect

SECONDS = 8
RATES = (100, 1_000, 5_000, 20_000)
PAYLOAD = b'{"x":123.456,"y":654.321,"name":"somebody","at":1712345678901}'
BURST_SECONDS = 0.002
"""Above 500 messages a second they come in bursts of so long, as reads of many sockets do."""

STATISTICS_SECONDS = 11
"""After so long an idle backend has reported all of its transactions."""


class Ear:
    """Remembers when each broadcast came."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def item(self, node: str, item: Item) -> None:
        """An item of the other process; both have the same monotonic clock."""
        if isinstance(item, BroadcastItem):
            self.delays.append(time.monotonic() - float(item.broadcast.event))

    def gap(self) -> None:
        """Nothing."""

    def peer_lost(self, node: str) -> None:
        """Nothing."""


def node(dsn: str, name: str, pipe: Connection) -> None:
    """One node as a process; ``pipe`` gives (rate, seconds) to publish, (0, n) to wait for n items, or None to end."""
    trio.run(_node, dsn, name, pipe)


async def _node(dsn: str, name: str, pipe: Connection) -> None:
    bus = NotifyBus(lambda app: connect(dsn, application_name=app), "realtime", name, "secret")
    ear = Ear()
    bus.listen(ear)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        while not bus.peers:
            await trio.sleep(0.01)
        pipe.send("met")
        while (order := await trio.to_thread.run_sync(pipe.recv)) is not None:
            rate, amount = order
            used, before = time.process_time(), bus.transactions
            if rate:
                await _publish(bus, rate, amount)
                pipe.send((bus.transactions - before, time.process_time() - used))
            else:
                with trio.move_on_after(SECONDS + 20):
                    while len(ear.delays) < amount:
                        await trio.sleep(0.02)
                pipe.send((ear.delays, time.process_time() - used))
                ear.delays = []
        nursery.cancel_scope.cancel()


async def _publish(bus: NotifyBus, rate: int, seconds: float) -> None:
    room = RoomKey("room")
    started = time.monotonic()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        if due - time.monotonic() > (BURST_SECONDS if rate > 500 else 0):
            await trio.sleep(due - time.monotonic())
        elif number % 20 == 0:
            await trio.lowlevel.checkpoint()
        bus.publish(BroadcastItem(Broadcast(room=room, event=repr(time.monotonic()), payload=PAYLOAD)))


def main() -> None:
    """Measure and print."""
    spawn = multiprocessing.get_context("spawn")
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        pipes, processes = [], []
        for name in ("near", "far"):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=node, args=(dsn, name, theirs))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()
        near, far = pipes
        time.sleep(STATISTICS_SECONDS)
        for rate in RATES:
            _measure(dsn, near, far, rate)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()


def _measure(dsn: str, near: Connection, far: Connection, rate: int) -> None:
    count = rate * SECONDS
    before, started = _commits(dsn), time.monotonic()
    far.send((0, count))
    near.send((rate, SECONDS))
    said, near_cpu = near.recv()
    took = time.monotonic() - started
    delays, far_cpu = far.recv()
    time.sleep(STATISTICS_SECONDS)
    transactions = (_commits(dsn) - before) / took
    rig.report(
        f"bus, {rate} messages/s for {SECONDS} s",
        [
            ("arrived", f"{len(delays)} of {count}, published at {count / took:.0f}/s"),
            (
                "delay",
                f"p50 {rig.percentile(delays, 0.5) * 1e3:.2f} ms, p99 {rig.percentile(delays, 0.99) * 1e3:.2f} ms",
            ),
            ("server", f"{transactions:.0f} transactions/s, {said / took:.0f} of them the bus's"),
            ("CPU", f"{near_cpu / count * 1e6:.1f} us per message sent, {far_cpu / count * 1e6:.1f} us received"),
        ],
    )


def _commits(dsn: str) -> int:
    connection = psycopg2.connect(dsn)
    with connection.cursor() as cursor:
        cursor.execute("select xact_commit from pg_stat_database where datname = current_database()")
        row = cursor.fetchone()
    connection.close()
    assert row is not None
    return int(row[0])
