"""The reader over a stream from which nothing comes: when that means that the stream has ended."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import trio

from tests.shell.wal.test_wal_reader import Rig, Wire, message
from walstream.shell.wal.wal_reader import SILENCE_SECONDS, START_SECONDS

OURS = 4711
"""The server's process of every stream of a ``Wire``."""


@pytest.mark.parametrize(
    ("named", "streams"), [((OURS, None), 2), ((OURS, 815), 2), ((OURS, OURS), 1), ((None, 815), 1)]
)
def test_a_silent_stream_is_left_when_its_process_has_ended(named: tuple[int | None, ...], streams: int) -> None:
    """One whose process the server has never named is not: it has another number there."""
    rig = Rig(Wire(message(b"a")), Wire())

    async def main() -> None:
        for pid in named:
            await trio.sleep(SILENCE_SECONDS + 1)
            rig.reader.held_by(pid)
        await trio.sleep(1)
        assert len(rig.opened) == streams

    rig.run(main, seconds=30)


def test_a_stream_from_which_anything_comes_is_not_silent() -> None:
    """Its end, too, is something that comes, and says more."""
    wire = Wire()
    wire.hears = 0  # a large message in pieces
    wire.on_empty = wire.calm
    rig = Rig(wire, Wire())

    async def main() -> None:
        rig.reader.held_by(OURS)
        for _ in range(10):
            await trio.sleep(SILENCE_SECONDS / 2)
            wire.wake()
            await trio.sleep(0.0001)
            rig.reader.held_by(None)
        assert len(rig.opened) == 1

    rig.run(main, seconds=60)


def test_a_stream_that_does_not_begin_is_given_up() -> None:
    wire = Wire()
    rig = Rig(wire, Wire())
    begin = wire.start_replication

    async def never(work: Any, *arguments: Any, **_: Any) -> Any:
        if getattr(work, "func", None) == begin:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    async def main() -> None:
        with mock.patch("trio.to_thread.run_sync", never):
            await trio.sleep(START_SECONDS + 0.01)
        assert rig.health.reader_reason.startswith("the stream did not begin")
        assert wire.readable.recv(1) == b"", "the thread that waits gets an error"

    rig.run(main, seconds=START_SECONDS + 3)
    assert len(rig.opened) == 2
