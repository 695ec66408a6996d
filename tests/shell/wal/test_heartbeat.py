"""Heartbeats: when they are emitted, which of those that come back count, and what a failing database does to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import psycopg2
import psycopg2.errors
import pytest
import structlog.testing
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

from tests.shell.database_support import FakeConnection, FakeDatabase, server_error
from tests.support import run
from walstream.decoder import MESSAGE_PREFIX
from walstream.errors import DatabaseRefused, DatabaseUnreachable, NotFound
from walstream.shell.health import Health
from walstream.shell.supervise import PERMANENT_DELAY_SECONDS
from walstream.shell.wal.heartbeat import JITTER, Heartbeat, emit
from walstream.telemetry.log import DATABASE_LOST, DATABASE_REACHED, HEARTBEAT_MISSED, HEARTBEAT_RETURNED
from walstream.telemetry.metrics import Metrics

SECONDS = 10.0


class Scene:
    """A heartbeat over a database that is not there."""

    def __init__(self, node: str = "node-1") -> None:
        self.database = FakeDatabase()
        self.health = Health(version="0", node=node, heartbeat_seconds=SECONDS, clock=lambda: 0.0)
        self.metrics = Metrics()
        self.emitted: list[bytes] = []
        self.heartbeat = Heartbeat(
            self.database,
            self.health,
            node=node,
            seconds=SECONDS,
            metrics=self.metrics,
            emitted=self.emitted.append,
        )


def beating(
    scene: Callable[[Scene], Awaitable[None]], node: str = "node-1", prepare: Callable[[Scene], None] | None = None
) -> Scene:
    """Run ``scene`` beside a heartbeat, with a clock that leaps."""

    async def main() -> Scene:
        made = Scene(node)
        if prepare is not None:
            prepare(made)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.heartbeat.run)
            await scene(made)
            nursery.cancel_scope.cancel()
        return made

    return run(main, autojump=True)


def page(metrics: Metrics, name: str) -> float:
    value = metrics.registry.get_sample_value(name)
    assert value is not None
    return value


def test_the_first_beat_comes_at_once_and_the_next_after_the_interval() -> None:
    async def scene(on: Scene) -> None:
        await trio.lowlevel.checkpoint()
        await trio.sleep(0.001)
        assert len(on.emitted) == 1
        await trio.sleep(SECONDS * (1 - JITTER) - 0.01)
        assert len(on.emitted) == 1
        await trio.sleep(SECONDS * JITTER + 0.02)
        assert len(on.emitted) == 2

    made = beating(scene)
    assert [content.encode() for content in made.database.contents] == made.emitted
    assert {parameters[0] for _, parameters in made.database.connection.executed} == {MESSAGE_PREFIX}


def test_a_content_names_the_node_and_is_never_repeated() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 5)

    first, second = beating(scene), beating(scene)
    contents = first.emitted + second.emitted
    assert all(b"node-1" in content for content in contents)
    assert len(set(contents)) == len(contents)


def test_beat_now_does_not_wait() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(1)
        on.heartbeat.beat_now()
        on.heartbeat.beat_now()
        await trio.sleep(0.001)
        assert len(on.emitted) == 2

    beating(scene)


def test_beat_now_during_a_statement_beats_once_more_after_it() -> None:
    def prepare(on: Scene) -> None:
        calls = iter([on.heartbeat.beat_now])
        on.database.before_answer = lambda: next(calls, lambda: None)()

    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert len(on.emitted) == 2

    beating(scene, prepare=prepare)


def test_what_comes_back_is_told_to_the_board_and_the_metrics() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.5)
        assert on.heartbeat.returned(on.emitted[0])
        assert on.health.round_trip_seconds == pytest.approx(0.5, abs=0.01)
        assert page(on.metrics, "walstream_heartbeat_seconds") == pytest.approx(0.5, abs=0.01)

    beating(scene)


def test_the_round_trip_of_a_late_one_is_its_own() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 2.5)
        assert len(on.emitted) == 3
        assert on.heartbeat.returned(on.emitted[0])
        assert on.health.round_trip_seconds == pytest.approx(SECONDS * 2.5, abs=0.1)

    beating(scene)


def test_one_may_come_back_before_its_statement_has_ended() -> None:
    answers: list[bool] = []

    def prepare(on: Scene) -> None:
        on.database.before_answer = lambda: answers.append(on.heartbeat.returned(on.database.contents[-1].encode()))

    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert answers == [True]
        assert on.health.round_trip_seconds == pytest.approx(0, abs=0.01)

    beating(scene, prepare=prepare)


def test_only_own_and_newer_ones_count() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 2.5)
        first, second, third = on.emitted
        assert on.heartbeat.returned(second)
        assert not on.heartbeat.returned(second), "read again after the stream began anew"
        assert not on.heartbeat.returned(first)
        assert not on.heartbeat.returned(third[:-1])
        assert not on.heartbeat.returned(third + b"0"), "never emitted"
        assert on.heartbeat.returned(third)

    beating(scene)


def test_another_process_of_the_same_name_is_somebody_else() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)

    first, second = beating(scene), beating(scene)
    assert not second.heartbeat.returned(first.emitted[0])


@given(st.binary(max_size=60), st.integers(0, 40))
def test_no_content_upsets_it(tail: bytes, kept: int) -> None:
    heartbeat = Heartbeat(FakeDatabase(), Health(version="0", node="n"), node="n")
    own = heartbeat._own
    assert not heartbeat.returned(tail)
    assert not heartbeat.returned(own[:kept] + tail)
    assert not heartbeat.returned(own + tail)


@given(st.text(max_size=20))
def test_any_name_of_a_node_will_do(node: str) -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert on.heartbeat.returned(on.emitted[0])

    made = beating(scene, node)
    assert made.emitted[0].isascii()
    assert b"\0" not in made.emitted[0]


def test_a_database_that_is_away_is_told_once_and_asked_again() -> None:
    def prepare(on: Scene) -> None:
        on.database.failures.extend([DatabaseUnreachable("gone")] * 5)

    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert on.health.health()["database"] == {"status": "down", "reason": "gone"}
        await trio.sleep(60)
        assert on.emitted
        assert on.health.health()["database"] == {"status": "up", "reason": ""}

    with structlog.testing.capture_logs() as logs:
        made = beating(scene, prepare=prepare)
    assert [line["event"] for line in logs if line["event"].startswith("database")] == [DATABASE_LOST, DATABASE_REACHED]
    assert made.database.forgotten == 5


def test_another_trouble_is_told_again() -> None:
    def prepare(on: Scene) -> None:
        refused = DatabaseRefused("no", reason="no_writes")
        on.database.failures.extend([DatabaseUnreachable("gone")] * 2 + [refused] * 3)

    async def scene(on: Scene) -> None:
        await trio.sleep(60)

    with structlog.testing.capture_logs() as logs:
        beating(scene, prepare=prepare)
    assert [line["code"] for line in logs if line["event"] == DATABASE_LOST] == ["database_unreachable", "no_writes"]


def test_beat_now_ends_the_pause_after_a_failure() -> None:
    def prepare(on: Scene) -> None:
        on.database.failures.append(NotFound("somebody has to repair this"))

    async def scene(on: Scene) -> None:
        await trio.sleep(PERMANENT_DELAY_SECONDS - 1)
        assert not on.emitted
        on.heartbeat.beat_now()
        await trio.sleep(0.001)
        assert on.emitted

    beating(scene, prepare=prepare)


def test_a_bug_is_not_survived() -> None:
    def prepare(on: Scene) -> None:
        on.database.failures.append(ZeroDivisionError())

    async def scene(_: Scene) -> None:
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        beating(scene, prepare=prepare)
    assert caught.group_contains(ZeroDivisionError)


def test_missing_heartbeats_are_told_once_and_so_is_their_return() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 8)
        assert on.heartbeat.returned(on.emitted[-1])
        await trio.sleep(SECONDS)
        assert on.heartbeat.returned(on.emitted[-1])

    with structlog.testing.capture_logs() as logs:
        beating(scene)
    told = [line["event"] for line in logs if line["event"].startswith("heartbeat")]
    assert told == [HEARTBEAT_MISSED, HEARTBEAT_RETURNED]


def test_one_whose_statement_failed_counts_all_the_same_when_it_comes_back() -> None:
    """The connection may be lost between the commit and its answer."""

    def lose() -> None:
        raise DatabaseUnreachable("lost")

    def prepare(on: Scene) -> None:
        calls = iter([lose])
        on.database.before_answer = lambda: next(calls, lambda: None)()

    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert not on.emitted
        assert on.heartbeat.returned(on.database.contents[0].encode())
        assert on.health.round_trip_seconds is None
        assert "heartbeat: none has come back yet" not in str(on.health.ready()[1]["reasons"])

    beating(scene, prepare=prepare)


def test_memory_is_bounded_while_nothing_comes_back() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 200)
        assert len(on.heartbeat._under_way) <= 64
        assert on.heartbeat.returned(on.emitted[-1])
        assert not on.heartbeat._under_way

    beating(scene)


@pytest.mark.parametrize(
    "answer", [(None,), server_error("25006", "read-only", psycopg2.errors.ReadOnlySqlTransaction)], ids=str
)
def test_a_server_that_takes_no_writes_is_named(answer: tuple[None] | Exception) -> None:
    with pytest.raises(DatabaseRefused, match="target_session_attrs") as caught:
        emit(FakeConnection(answer).as_connection(), "x")
    assert caught.value.reason == "no_writes"
    assert caught.value.sqlstate == "25006"


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(psycopg2.OperationalError):
        emit(FakeConnection(server_error("57P01")).as_connection(), "x")
