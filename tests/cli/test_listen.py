"""What ``walstream listen`` prints, which changes it shows, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from walstream.capture.plan import Plan, subscription_row
from walstream.channel.topic import feed_topic, parse_topic
from walstream.cli import cli
from walstream.errors import DatabaseUnreachable, EnvironmentFailure
from walstream.model import Operation
from walstream.shell.commands import listen_output
from walstream.shell.commands.listen import Scope
from walstream.shell.commands.listen_output import Output, notification
from walstream.shell.database.tables import Target

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=63)


@given(NAMES, NAMES)
def test_a_feed_has_the_topic_that_is_read_as_its_table(schema: str, table: str) -> None:
    topic = parse_topic(feed_topic(schema, table))
    assert topic is not None
    assert topic.table == (schema, table)


def test_the_documented_form() -> None:
    assert notification("public", "users", 12345, b'{"operation":"INSERT"}') == (
        b'Asynchronous notification "realtime:table:public.users" received from server process with PID 12345.\n'
        b'Payload: {"operation":"INSERT"}\n'
    )


@given(NAMES, NAMES)
def test_a_change_is_two_lines_whatever_its_table_is_called(schema: str, table: str) -> None:
    text = notification(schema, table, 1, b"{}").decode()
    head, payload, end = text.split("\n")
    assert (payload, end) == ("Payload: {}", "")
    assert head.isprintable()


def written(as_json: bool, messages: list[bytes]) -> bytes:
    reading, writing = os.pipe()
    output = Output(as_json=as_json, pid=7, descriptor=writing)

    async def write() -> None:
        for message in messages:
            output.add("public", "users", message)
        await output.flush()
        await output.flush()

    found: list[bytes] = []
    with open(reading, "rb") as pipe:
        reader = threading.Thread(target=lambda: found.append(pipe.read()))
        reader.start()
        trio.run(write)
        os.close(writing)
        reader.join()
    return found[0]


def test_json_is_the_message_and_nothing_else() -> None:
    assert written(True, [b'{"a":1}', b'{"a":2}']) == b'{"a":1}\n{"a":2}\n'
    assert written(False, [b"{}"]) == notification("public", "users", 7, b"{}")


def test_more_than_a_pipe_holds_is_written_whole() -> None:
    message = b"x" * 1_000_000
    assert written(True, [message]) == message + b"\n"


def test_what_waits_is_bounded() -> None:
    output = Output(as_json=True)
    output.add("public", "users", b"x" * (listen_output.FLUSH_BYTES - 2))
    assert not output.is_full
    output.add("public", "users", b"")
    assert output.is_full


def ends(work: Callable[[], Awaitable[None]], seconds: float = 0.0, descriptor: int = 1) -> float:
    """Seconds that pass on a clock that jumps until ``work`` is over."""
    clock = MockClock(autojump_threshold=0)

    async def timed() -> float:
        start = trio.current_time()
        await listen_output._until_ended(work, seconds, descriptor)
        return trio.current_time() - start

    return trio.run(timed, clock=clock)


def test_seconds_end_it_exactly() -> None:
    assert ends(trio.sleep_forever, 90) == 90


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_quietly(number: signal.Signals) -> None:
    async def work() -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    # Whoever runs the tests may ignore it, as nohup does.
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        listen_output.run(work, 0)
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored() -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.sleep_forever()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ends(work, 5) == 5
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_pipe_that_nobody_reads_ends_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert ends(trio.sleep_forever, 0, writing) == 0
        output = Output(as_json=True, descriptor=writing)
        output.add("public", "users", b"{}")
        listen_output.run(output.flush, 0)
    finally:
        os.close(writing)


def test_output_that_fails_is_told() -> None:
    with open("/dev/full", "wb") as full:
        output = Output(as_json=True, descriptor=full.fileno())
        output.add("public", "users", b"{}")
        with pytest.raises(EnvironmentFailure, match="cannot write to standard output: No space left"):
            listen_output.run(output.flush, 0)


def test_an_error_comes_out_of_its_groups() -> None:
    async def fail() -> None:
        raise DatabaseUnreachable("gone")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    with pytest.raises(DatabaseUnreachable, match="gone"):
        listen_output.run(work, 0)


def test_other_errors_are_not_swallowed() -> None:
    async def work() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup):
        listen_output.run(work, 0)


def test_a_subscription_applies_and_what_has_none_is_shown_whole() -> None:
    plan = Plan(
        [
            subscription_row("1", "public.users", ["INSERT"]),
            subscription_row("2", "public.broken", ["INSERT"], "name ="),
        ],
        own_schema="realtime",
    )
    scope = Scope(Target("public.*", (), True), plan)
    assert scope.plan_of("public", "users") is plan
    whole = scope.plan_of("public", "posts").row_for("public", "posts")
    assert whole is not None
    assert whole.events == frozenset(Operation)
    assert [scope.wanted("public", name) for name in ("users", "posts", "broken")] == [True, True, False]
    assert not scope.wanted("other", "users")


@pytest.mark.parametrize(
    "arguments",
    [
        ["users", "soon"],
        ["users", "-1"],
        ["users", "nan"],
        ["users", "--format", "csv"],
        ["users", "--token", "t"],
        [],
    ],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, ["listen", *arguments], env={"WALSTREAM_DATABASE_URL": "host=/nowhere"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage: " in done.stderr
