"""Speaking by NOTIFY without a server: batches, pace, failures, the goodbye."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
import trio

from tests.shell.database_support import FakeConnection
from tests.shell.line_support import FakeLine
from tests.support import run
from walstream.errors import DatabaseUnreachable, WalstreamError
from walstream.shell.channels import notify_mouth as module
from walstream.shell.channels.notify_mouth import LATE_SECONDS, PACE_SECONDS, NotifyMouth, Saying
from walstream.shell.database.postgres import PgConnection


class Talker:
    """Says what it is given, two at a time."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.times: list[float] = []
        self.failed: list[WalstreamError] = []
        self.began = 0
        self.denials = 0
        self.goodbye = ["bye"]

    def settle(self, connection: PgConnection) -> bool:
        self.denials -= 1
        return self.denials < 0

    def reached(self) -> None:
        self.began += 1

    def lost(self, error: WalstreamError, seconds: float) -> None:
        self.failed.append(error)

    def take(self, *, last: bool) -> list[Saying]:
        taken = [self.waiting.popleft() for _ in range(min(2, len(self.waiting)))]
        if last and not taken:
            taken, self.goodbye = self.goodbye, []
        if taken:
            self.times.append(trio.current_time())
        return [Saying("c", each, each, b"content") if each.startswith("+") else Saying("c", each) for each in taken]

    def unsaid(self, sayings: list[Saying], error: WalstreamError) -> None:
        self.failed.append(error)
        if isinstance(error, DatabaseUnreachable):
            self.waiting.extendleft(saying.payload for saying in reversed(sayings))


def said(line: FakeLine) -> list[list[str]]:
    """The payloads of each transaction, of all that were tried."""
    return [list(values["payloads"]) for _, values in _statements(line)]


def _statements(line: FakeLine) -> list[tuple[Any, Any]]:
    return [(statement, values) for statement, values in line.fake.executed if values]


class Connection(FakeConnection):
    """Keeps named parameters as they are."""

    def cursor(self) -> Any:
        cursor = super().cursor()
        execute = cursor.execute

        def remember(statement: Any, parameters: Any = ()) -> None:
            try:
                execute(statement)
            finally:
                self.executed[-1] = (statement, parameters)

        cursor.execute = remember  # type: ignore[method-assign]  # one cursor of this connection
        return cursor


def scene(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[NotifyMouth, Talker, FakeLine], Any],
    *answers: Any,
    delay_seconds: float = 0.0,
) -> tuple[Talker, FakeLine]:
    line = FakeLine(Connection(None, *answers), delay_seconds)
    monkeypatch.setattr(module, "Line", line)
    talker = Talker()

    async def main() -> None:
        mouth = NotifyMouth(lambda: line.connection, talker, schema="realtime", node="a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mouth.run)
            await trio.sleep(10)
            await test(mouth, talker, line)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
    return talker, line


def test_what_waits_is_said_at_once_then_at_a_pace_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        started = trio.current_time()
        talker.waiting.extend(map(str, range(20)))
        mouth.wake()
        await trio.sleep(1)
        assert said(line) == [[str(number), str(number + 1)] for number in range(0, 20, 2)]
        assert talker.times[0] == started
        assert talker.times[-1] - started >= 9 * PACE_SECONDS - LATE_SECONDS - 1e-9
        assert mouth.transactions == 10
        talker.waiting.append("alone")
        mouth.wake()
        started = trio.current_time()
        await trio.sleep(1)
        assert talker.times[-1] == started

    scene(monkeypatch, test)


def test_a_batch_collects_while_a_statement_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        for word in ("a", "b", "c"):
            talker.waiting.append(word)
            mouth.wake()
            await trio.sleep(0.1)
        await trio.sleep(10)
        assert said(line) == [["a"], ["b", "c"]]

    scene(monkeypatch, test, delay_seconds=1.0)


def test_the_last_word_is_said_after_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        talker.waiting.extend("abc")

    _, line = scene(monkeypatch, test)
    assert said(line) == [["a", "b"], ["c"], ["bye"]]
    assert line.is_closed


def test_who_cannot_say_goodbye_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        line.delay_seconds = 100
        times.append(trio.current_time())

    async def timed() -> None:
        line = FakeLine(Connection(None))
        monkeypatch.setattr(module, "Line", line)
        talker = Talker()
        mouth = NotifyMouth(lambda: line.connection, talker, schema="realtime", node="a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mouth.run)
            await trio.sleep(10)
            await test(mouth, talker, line)
            nursery.cancel_scope.cancel()
        times.append(trio.current_time())

    run(timed, autojump=True)
    assert times[1] - times[0] <= 1.0


def test_what_a_lost_connection_may_not_have_said_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        talker.waiting.extend("abc")
        mouth.wake()
        await trio.sleep(10)
        assert said(line) == [["a", "b"], ["a", "b"], ["c"]]
        assert (talker.began, line.opened) == (2, 2)
        assert [type(error) for error in talker.failed] == [DatabaseUnreachable] * 2

    scene(monkeypatch, test, psycopg2.OperationalError("gone"))


def test_what_the_server_refuses_does_not_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(psycopg2.ProgrammingError):
        pgcode = "42501"

    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        talker.waiting.extend("abc")
        mouth.wake()
        await trio.sleep(10)
        assert said(line) == [["a", "b"], ["c"]]
        assert (talker.began, len(talker.failed)) == (1, 1)

    scene(monkeypatch, test, Refusal("no"))


def test_content_is_stored_in_the_same_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        talker.waiting.extend(["+large", "small"])
        mouth.wake()
        await trio.sleep(1)
        [(_, values)] = _statements(line)
        assert (values["ids"], values["node"]) == (["+large"], "a")
        assert values["payloads"] == ["+large", "small"]

    scene(monkeypatch, test)


def test_who_may_not_speak_yet_asks_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(mouth: NotifyMouth, talker: Talker, line: FakeLine) -> None:
        assert talker.began == 1

    line = FakeLine(Connection())
    monkeypatch.setattr(module, "Line", line)

    async def main() -> None:
        talker = Talker()
        talker.denials = 3
        talker.waiting.append("a")
        mouth = NotifyMouth(lambda: line.connection, talker, schema="realtime", node="a")
        mouth.wake()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mouth.run)
            await trio.sleep(2.5)
            assert (talker.began, said(line)) == (0, [])
            await trio.sleep(1)
            assert (talker.began, said(line)) == (1, [["a"]])
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
