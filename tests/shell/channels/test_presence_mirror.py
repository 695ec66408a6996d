"""When presence is written, and what a database that fails does to it. What is written is tested on a real one."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import pytest
import structlog.testing
import trio

from tests.support import run
from walstream.channel.presence_rows import RowKey
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.rooms import PresenceEntry, RoomKey
from walstream.shell.channels.attempts import DUTY, GOODBYE_SECONDS, PATIENCE_SECONDS
from walstream.shell.channels.presence_mirror import CHECK_SECONDS, PAUSE_SECONDS, REREAD_SECONDS, PresenceMirror
from walstream.shell.database.postgres import PgConnection
from walstream.telemetry.log import PRESENCE_UNREPORTED

T = TypeVar("T")


class Table:
    """Stands in for the statements: remembers what they were asked, and when."""

    def __init__(self) -> None:
        self.log: list[tuple[float, str]] = []
        self.rows: dict[RowKey, str] = {}

    def _note(self, what: str) -> None:
        self.log.append((trio.current_time(), what))

    def write(self, _: object, rows: Any, gone: Any) -> bool:
        self._note(f"write {len(rows)} {len(gone)}")
        self.rows |= {row.key: row.status for row in rows}
        for key in gone:
            del self.rows[key]
        return True

    def ours(self, _: object) -> dict[RowKey, str]:
        self._note("ours")
        return dict(self.rows)

    def outside(self, _: object) -> list[PresenceEntry]:
        self._note("outside")
        return []

    def touch(self, _: object) -> bool:
        return True

    def sweep(self, _: object) -> tuple[int, ...]:
        self._note("sweep")
        return (0, 0, 0)

    def goodbye(self, _: object) -> bool:
        self._note("goodbye")
        self.rows.clear()
        return True

    def times(self, what: str) -> list[float]:
        return [at for at, said in self.log if said.startswith(what)]


class Database:
    """Answers after ``delay`` seconds; ``failures`` in turn, and for ever while ``broken``."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.broken: Exception | None = None
        self.failures: deque[Exception] = deque()

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        await trio.sleep(self.delay)
        if self.broken is not None:
            raise self.broken
        if self.failures:
            raise self.failures.popleft()
        return work(cast("PgConnection", None))


class Scene:
    """A mirror over a table that is not there."""

    def __init__(self) -> None:
        self.database = Database()
        self.table = Table()
        self.outside: list[list[PresenceEntry]] = []
        self.mirror = PresenceMirror(
            self.database, "realtime", "node", outside=self.outside.append, clock=trio.current_time
        )
        self.mirror._statements = cast("Any", self.table)

    def track(self, entry: str, meta: bytes | None = b"{}") -> None:
        self.mirror.changed(PresenceEntry(RoomKey("lobby"), entry, entry, "ref", meta), None)


def mirroring(scene: Callable[[Scene], Awaitable[None]], made: Scene | None = None) -> Scene:
    """Run ``scene`` beside a mirror, with a clock that leaps; cancelled at the end, as a daemon that stops."""
    on = made or Scene()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.mirror.run)
            await scene(on)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
    return on


def test_what_changes_within_a_second_is_one_write_and_nothing_is_none() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.5)
        assert on.table.times("write") == []
        for number in range(10):
            on.track("e", b'{"at":%d}' % number)
            on.track(f"short{number}")
            await trio.sleep(0.01)
            on.track(f"short{number}", None)
        await trio.sleep(10)
        assert [what for _, what in on.table.log if "write" in what] == ["write 1 0"]
        on.track("e", None)
        await trio.sleep(PAUSE_SECONDS)
        assert on.table.log[-1][1] == "write 0 1"

    assert mirroring(scene).table.log[-1][1] == "goodbye"


def test_a_slow_database_is_asked_less_often() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.1)
        on.database.delay = 0.5
        for number in range(100):
            on.track("e", b'{"at":%d}' % number)
            await trio.sleep(0.2)
        times = on.table.times("write")
        assert min(late - early for early, late in itertools.pairwise(times)) >= DUTY * 0.5

    mirroring(scene)


def test_while_the_database_is_away_the_newest_is_kept() -> None:
    async def scene(on: Scene) -> None:
        on.track("a")
        await trio.sleep(PAUSE_SECONDS * 1.5)
        assert len(on.table.rows) == 1
        on.database.broken = DatabaseUnreachable("gone")
        on.track("a", None)
        for number in range(3600):
            on.track(f"e{number}")
            on.track(f"e{number - 3}", None)
            await trio.sleep(1)
        assert on.mirror._rows.backlog <= 3600 + 1
        on.database.broken = None
        await trio.sleep(12)
        assert {key.user_id for key in on.table.rows} == {"e3597", "e3598", "e3599"}

    with structlog.testing.capture_logs() as logs:
        mirroring(scene)
    assert logs == [], "who proves the way to the database says that it is away"


def test_a_table_that_lost_its_rows_is_filled_as_soon_as_it_answers() -> None:
    async def scene(on: Scene) -> None:
        on.track("a")
        on.track("b")
        await trio.sleep(PAUSE_SECONDS * 1.5)
        on.database.failures.append(DatabaseUnreachable("the server crashed"))
        on.table.rows.clear()
        on.track("b", b'{"new":1}')
        await trio.sleep(PAUSE_SECONDS * 3)
        assert len(on.table.rows) == 2
        on.table.rows.clear()
        await trio.sleep(CHECK_SECONDS + PAUSE_SECONDS)
        assert len(on.table.rows) == 2

    mirroring(scene)


def test_a_refusal_is_told_once_by_each_that_meets_it() -> None:
    on = Scene()
    on.database.broken = DatabaseRefused("no", reason="insufficient_privilege")

    async def scene(on: Scene) -> None:
        await trio.sleep(600)

    with structlog.testing.capture_logs() as logs:
        mirroring(scene, on)
    told = [line for line in logs if line["log_level"] == "warning"]
    assert {(line["event"], line["code"]) for line in told} == {(PRESENCE_UNREPORTED, "insufficient_privilege")}
    assert len(told) == 3, "writing, reading, sweeping"


def test_idle_people_become_away_without_anybody_saying_so() -> None:
    async def scene(on: Scene) -> None:
        on.track("a")
        await trio.sleep(200)
        on.mirror.touched("a")
        await trio.sleep(200)
        assert list(on.table.rows.values()) == ["online"]
        await trio.sleep(102)
        assert list(on.table.rows.values()) == ["away"]
        on.mirror.touched("a")
        await trio.sleep(PAUSE_SECONDS * 2)
        assert list(on.table.rows.values()) == ["online"]

    mirroring(scene)


def test_notifications_are_gathered() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(1)
        assert len(on.outside) == 1
        for _ in range(1000):
            on.mirror.notified("UPDATE x")
            await trio.sleep(0.001)
        assert 2 <= len(on.outside) <= 6
        await trio.sleep(1)
        count = len(on.outside)
        on.mirror.again()
        await trio.sleep(0.01)
        assert len(on.outside) == count + 1, "at once, where it was quiet before"
        await trio.sleep(REREAD_SECONDS + 1)
        assert len(on.outside) == count + 2

    mirroring(scene)


def test_what_comes_while_it_is_read_is_read_again() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(1)
        on.database.delay = 1.0
        on.mirror.notified("")
        await trio.sleep(0.5)
        on.mirror.notified("")
        await trio.sleep(3)
        assert len(on.outside) == 3

    mirroring(scene)


def test_stopping_waits_for_a_batch_under_way_and_not_for_long() -> None:
    async def stop(delay: float) -> tuple[float, list[str]]:
        on = Scene()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.mirror.run)
            await trio.sleep(PAUSE_SECONDS * 1.5)
            on.database.delay = delay
            for number in range(2000):
                on.track(f"e{number}")
            await trio.sleep(PAUSE_SECONDS)
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        return trio.current_time() - started, [what for _, what in on.table.log if what[0] in "wg"]

    took, log = run(stop, 0.8, autojump=True)
    assert log[-2:] == ["write 500 0", "goodbye"]
    assert took < 2
    took, log = run(stop, math.inf, autojump=True)
    assert log == []
    assert took <= PATIENCE_SECONDS + GOODBYE_SECONDS


def test_a_bug_is_not_survived() -> None:
    on = Scene()
    on.database.failures.append(ZeroDivisionError())

    async def scene(_: Scene) -> None:
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        mirroring(scene, on)
    assert caught.group_contains(ZeroDivisionError)
