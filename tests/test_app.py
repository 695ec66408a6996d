"""What the daemon is made of, and how it ends; what it does then is tried against PostgreSQL."""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.support import run
from walstream import app
from walstream.app import Daemon, main
from walstream.config import Config
from walstream.errors import ConfigError

CONFIG = Config(database_url="host=/nowhere", jwt_secret="x" * 40)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(), "no database"),
        (Config(database_url="host=/nowhere", listen="0.0.0.0:3100"), "can be reached from elsewhere"),
        (Config(database_url="host=/nowhere", listen="[::]:3100"), "can be reached from elsewhere"),
        (Config(database_url="host=/nowhere", jwks="/nowhere/keys"), "jwks"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_started(config: Config, words: str) -> None:
    with mock.patch.object(trio, "run") as started, pytest.raises(ConfigError, match=words) as refused:
        main(config)
    assert refused.value.repair
    started.assert_not_called()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_without_keys_everybody_on_this_machine_is_anonymous(listen: str) -> None:
    verifier = app._verifier(Config(database_url="x", listen=listen))
    assert verifier.verify("", 0.0).role == app.OPEN_ROLE


def test_errors_of_tasks_leave_their_groups() -> None:
    async def fail(daemon: Daemon) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ConfigError("the port is taken")

    with mock.patch.object(Daemon, "run", fail), pytest.raises(ConfigError, match="the port is taken"):
        main(CONFIG)


def test_rows_in_doubt_are_shown_by_health_and_metrics() -> None:
    daemon = Daemon(CONFIG)
    daemon.judge.doubts.count("public", "t", "policy_error", 3)
    assert daemon.health.health()["doubts"] == [{"table": "public.t", "reason": "policy_error", "rows": 3}]

    async def ask() -> str:
        return daemon.metrics.page()[0].decode()

    page = run(ask)
    assert 'walstream_rows_in_doubt_total{reason="policy_error",table="public.t"} 3.0' in page
    assert "walstream_rows_to_judge 0.0" in page


def test_a_bug_stays_a_bug() -> None:
    async def fail(daemon: Daemon) -> None:
        async with trio.open_nursery():
            raise ZeroDivisionError

    with mock.patch.object(Daemon, "run", fail), pytest.raises(BaseExceptionGroup):
        main(CONFIG)


class Ending:
    """A daemon that gets signals while its edge drains for as long as the test wants."""

    def __init__(self) -> None:
        self.daemon = Daemon(CONFIG)
        self.drained = trio.Event()
        self.drains = 0
        self.ended = False

    async def run(self, *numbers: int, drained: bool = True) -> None:
        async def drain() -> None:
            self.drains += 1
            await self.drained.wait()

        with mock.patch.object(self.daemon.edge, "drain", drain):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.daemon._stop_on_signals, nursery.cancel_scope)
                for number in numbers:
                    assert not nursery.cancel_scope.cancel_called
                    os.kill(os.getpid(), number)
                    # Signals come through a file descriptor: waiting for tasks is not enough.
                    with trio.move_on_after(0.05):
                        await nursery_ended(nursery.cancel_scope)
                    await wait_all_tasks_blocked()
                if drained:
                    self.drained.set()
        self.ended = True


async def nursery_ended(scope: trio.CancelScope) -> Any:
    while not scope.cancel_called:  # noqa: ASYNC110 - a scope has no event
        await trio.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(number: int) -> None:
    ending = run(_ending, number)
    assert (ending.drains, ending.ended) == (1, True)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_waits_for_nobody(second: int) -> None:
    ending = run(_ending, signal.SIGTERM, second)
    assert (ending.drains, ending.ended, ending.drained.is_set()) == (1, True, False)


async def _ending(*numbers: int) -> Ending:
    ending = Ending()
    with trio.fail_after(20):
        await ending.run(*numbers, drained=len(numbers) == 1)
    return ending


def test_the_parts_are_joined() -> None:
    daemon = Daemon(CONFIG)
    assert daemon.pipeline.on_gap == daemon.gaps.tell
    assert daemon.pipeline.on_overtaken == daemon.gaps.overtaken
    assert daemon.pipeline.on_anew == daemon.keeper.on_anew == daemon.gaps.captured_anew
    assert daemon.reader.poison.on_skipped == daemon.gaps.left_out
    assert len(daemon.joins) == 0
