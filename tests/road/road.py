"""The road from the WAL to clients in one process: the real daemon, a server in memory, and what befalls them.

Each method is one thing that happens; what follows from it is judged while clients read. Time leaps, nothing else is
random: the same steps have the same end. No test lives here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Protocol, cast
from unittest import mock

import structlog.testing
import trio
import trio.testing

from tests.road.clients import EVERYTHING, Item, Socket, Subscriber
from tests.road.judging import HISTORY_BYTES, HISTORY_SECONDS, confirmed
from tests.road.server import NAMES, Postgres, Preparing, Replication
from walstream import app
from walstream.config import Config
from walstream.shell.clients import joins
from walstream.shell.database import plan_source
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.delivery import fanout, pursuit
from walstream.shell.wal import pipeline, wal_reader

CONFIG: Final = Config(
    database_url="host=/nowhere", jwt_secret="x" * 40, history_bytes=HISTORY_BYTES, history_seconds=HISTORY_SECONDS
)
PATIENCE: Final = 60
"""Seconds of the clock that leaps, after which everybody has everything."""

WISHES: Final = (
    (Item("*"),),
    (Item("apples"), Item("pears", "red")),
    (Item("apples", "green"), Item("*", "red")),
    (Item("pears"),),
)

Deed = Callable[[app.Daemon], object]


class Readable(Protocol):
    """What the reader waits for."""

    async def readable(self) -> None: ...


class Node:
    """One life of the daemon. ``bug``: is done to it before it begins."""

    def __init__(self, postgres: Postgres, bug: Deed) -> None:
        self._postgres = postgres
        self.daemon = app.Daemon(CONFIG)
        self.daemon.reader._database = cast(Any, Preparing(postgres))
        self.daemon.reader._open = cast(Any, lambda patience: Replication(postgres))
        self.joins = self.daemon.joins
        self.scope = trio.CancelScope()
        self.loaded = self.upsets = 0
        self._has_begun = False
        self._open = self.daemon.pipeline.open
        self.daemon.pipeline.open = self._opened  # type: ignore[method-assign]  # looked at, not changed
        bug(self.daemon)

    async def _opened(self, stream: Any) -> Any:
        options = await self._open(stream)
        self.upsets = self._postgres.upsets
        if not self._has_begun or stream.gap or stream.is_new_slot:
            self.loaded = len(self._postgres.wal)
        self._has_begun = True
        return options

    @property
    def newest(self) -> int:
        return int(self.daemon.ring.newest)

    @property
    def began(self) -> int:
        return int(self.daemon.ring.start)

    async def run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                for part in (self.daemon.reader, self.daemon.fanout, self.daemon.joins):
                    nursery.start_soon(part.run)


class Deadline(trio.abc.Instrument):
    """Calls ``act`` when tasks have taken so many steps."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.steps:
            self.steps -= 1
            if not self.steps:
                self._act()


class Road:
    """Everything together. ``nursery``: where daemons live."""

    def __init__(self, postgres: Postgres, nursery: trio.Nursery, bug: Deed) -> None:
        self._nursery = nursery
        self._bug = bug
        self.postgres = postgres
        self.postgres.on_confirm = partial(confirmed, self.postgres)
        self.subscribers = [
            Subscriber(self.postgres, f"s{at}", items, resumes=at not in (4, 5, 7))
            for at, items in enumerate(2 * WISHES)
        ]
        self.sockets: list[Socket] = []
        self._deadline = Deadline(self._die)
        trio.lowlevel.add_instrument(self._deadline)
        self._begin()

    def _begin(self) -> None:
        self.node = Node(self.postgres, self._bug)
        self._nursery.start_soon(self.node.run)

    # -- what the server does

    def commit(self, rows: Sequence[tuple[int, int, bool]], early: bool, hangs: bool) -> None:
        made = [self.postgres.row(NAMES[at], ("red", "green")[t], update=update) for at, t, update in rows]
        self.postgres.commit(made, early=early, hangs=hangs)

    def bulk(self, table: int, count: int) -> None:
        self.postgres.commit([self.postgres.row(NAMES[table], ("red", "green")[at % 3 == 0]) for at in range(count)])

    def plan(self, table: int, condition: str | None) -> None:
        self.postgres.commit(planned=(NAMES[table], condition))

    def begin(self) -> None:
        self.postgres.begin()

    def rollback(self) -> None:
        self.postgres.rollback()

    def end(self) -> None:
        self.postgres.end_all()

    # -- what clients do

    def connect(self, at: int, count: int, slow: bool) -> None:
        """Whoever of these is away comes, by one connection."""
        away = [each for each in self.subscribers[at : at + count] if each.socket is None]
        if away:
            socket = Socket(self.node, self.postgres, slow=slow)
            self.sockets.append(socket)
            for subscriber in away:
                socket.join(subscriber)

    def leave(self, at: int) -> None:
        subscriber = self.subscribers[at]
        if subscriber.socket is not None:
            subscriber.socket.look()
            subscriber.socket.drop(subscriber)

    def hang_up(self, at: int) -> None:
        for socket in self._some(at):
            self._lose(socket)

    def read(self, at: int, size: int) -> None:
        for socket in self._some(at):
            socket.read(size)

    def stall(self, at: int) -> None:
        for socket in self._some(at):
            socket.narrow.room = 0

    def _some(self, at: int) -> list[Socket]:
        return [self.sockets[at % len(self.sockets)]] if self.sockets else []

    def _lose(self, socket: Socket) -> None:
        self.sockets.remove(socket)
        socket.lose()

    # -- what goes wrong

    def cut(self) -> None:
        self.postgres.cut()

    def restart_server(self) -> None:
        self.postgres.restart()

    def checkpoint(self) -> None:
        self.postgres.checkpoint()

    def drop_slot(self) -> None:
        self.postgres.drop_slot()

    def move_slot(self) -> None:
        self.postgres.move_slot()

    def promote(self) -> None:
        self.postgres.promote()

    def away(self) -> None:
        self.postgres.is_away = True
        self.postgres.epoch += 1
        self.postgres.cut()

    def back(self) -> None:
        self.postgres.is_away = False

    def slow(self, seconds: float) -> None:
        self.postgres.seconds = seconds

    def pace(self, messages: int) -> None:
        self.postgres.pace = messages

    def kill(self, after: int) -> None:
        """The daemon dies when it has taken so many steps more, and begins again."""
        if after:
            self._deadline.steps = after
        else:
            self._die()
            self._begin()

    def _die(self) -> None:
        """Nothing that it does from here on reaches anybody."""
        self._deadline.steps = 0
        self.postgres.cut()
        for socket in self.sockets:
            socket.outbox.die()
        self.node.scope.cancel()

    # -- time

    async def turns(self, count: int) -> None:
        """Let the daemon take a few steps, or, for 0, as many as it can without waiting."""
        for _ in range(count):
            await trio.lowlevel.checkpoint()
        if not count:
            await trio.testing.wait_all_tasks_blocked()
        self._look()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._look()

    def _look(self) -> None:
        if self.node.scope.cancel_called:
            for socket in list(self.sockets):
                self._lose(socket)
            self._begin()
        for socket in list(self.sockets):
            socket.look()
            if socket.is_closed:
                self._lose(socket)

    @property
    def _is_quiet(self) -> bool:
        """Whether nothing is to be expected any more."""
        slot, daemon = self.postgres.slot, self.node.daemon
        return (
            slot is not None
            and slot.reader is not None
            and not slot.reader.has_more
            and not len(daemon.fanout.pursuits)
            and all(each.judge.is_subscribed or each.is_refused for each in self.subscribers)
        )

    async def settle(self) -> None:
        """All is well again and everybody comes and reads: who is subscribed has everything."""
        self.back()
        self.slow(0.0)
        self.pace(0)
        self._deadline.steps = 0
        self.postgres.end_all()
        while self.postgres.open:
            self.postgres.rollback()
        for _ in range(PATIENCE):
            for socket in self.sockets:
                socket.read(EVERYTHING)
            await self.sleep(0.5)
            await self.turns(0)
            if self._is_quiet:
                break
            for at in range(len(self.subscribers)):
                self.connect(at, 1, slow=False)
        for subscriber in self.subscribers:
            subscriber.judge.settled()


@contextlib.contextmanager
def instead_of_the_world(postgres: Postgres) -> Iterator[None]:
    """The daemon asks this server, waits for no thread and no descriptor, and does everything in small pieces."""

    async def run_sync(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)

    async def wait_readable(stream: Readable) -> None:
        await stream.readable()

    clock = SimpleNamespace(
        monotonic=trio.current_time, clock_gettime=lambda clock: trio.current_time(), sleep=lambda seconds: None
    )
    loaders = ("load_relations", "load_types", "load_rights", "cast_literals")
    patches: Any
    with contextlib.ExitStack() as stack:
        patches = (
            mock.patch("trio.to_thread.run_sync", run_sync),
            mock.patch("trio.lowlevel.wait_readable", wait_readable),
            mock.patch.multiple(wal_reader, time=clock, GULP_MESSAGES_MIN=1, GULP_MESSAGES_MAX=4, TICK_BYTES=500),
            mock.patch.multiple(pursuit, SLICE_CHANGES=3, ROOM_BYTES=700),
            mock.patch.multiple(fanout, SLICE_CHANGES=2),
            mock.patch.multiple(joins, SLICE_JOINS=1),
            mock.patch.object(app, "Database", return_value=postgres),
            mock.patch.object(plan_source, "table_oid", return_value=1),
            mock.patch.object(plan_source, "load", lambda server, *_: LoadedPlan(server.plan, server.snapshot)),
            *(mock.patch.object(joins, name, partial(_ask, name)) for name in (*loaders, "load_roles", "tables_of")),
            *(mock.patch.object(pipeline, name, partial(_ask, name)) for name in loaders),
        )
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(structlog.testing.capture_logs())
        yield


def _ask(name: str, server: Postgres, *args: Any, **more: Any) -> Any:
    return getattr(server, name)(server, *args, **more)
