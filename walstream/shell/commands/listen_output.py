"""What ``walstream listen`` prints, and until when: its lines, its standard output, and the three ends of a listener.

Where changes come from is in ``listen`` and ``listen_live``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from walstream.channel.topic import feed_topic
from walstream.errors import EnvironmentFailure, WalstreamError

FLUSH_BYTES: Final = 256 * 1024
GONE_SECONDS: Final = 0.5
"""How often it is looked whether somebody still reads what is printed."""


class _ReaderGone(Exception):
    """Nobody reads standard output any more."""


class Output:
    """Collects messages and writes them to a descriptor. ``as_json``: one object a line, else two lines a change.

    ``pid``: the server process that the changes come from.
    """

    def __init__(self, *, as_json: bool, pid: int = 0, descriptor: int = 1) -> None:
        self.pid = pid
        self.descriptor = descriptor
        self._as_json = as_json
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, schema: str, table: str, message: bytes) -> None:
        """Take one change in the form of the table feed."""
        text = message + b"\n" if self._as_json else notification(schema, table, self.pid, message)
        self._waiting.append(text)
        self._size += len(text)

    @property
    def is_full(self) -> bool:
        """Whether more should wait until what is here is written."""
        return self._size >= FLUSH_BYTES

    async def flush(self) -> None:
        """Write everything. Cancelling it gives up what the reader was too slow for."""
        if not self._waiting:
            return
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        try:
            # In a thread: who reads slowly, as a pager does, must not keep signals and keepalives waiting.
            await trio.to_thread.run_sync(_write_all, self.descriptor, data, abandon_on_cancel=True)
        except BrokenPipeError as error:
            raise _ReaderGone from error
        except OSError as error:
            raise EnvironmentFailure(f"cannot write to standard output: {error.strerror}") from error


def notification(schema: str, table: str, pid: int, message: bytes) -> bytes:
    """The two lines of one change. Characters of a name that are not printable are shown escaped."""
    channel = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in feed_topic(schema, table)
    )
    head = f'Asynchronous notification "{channel}" received from server process with PID {pid}.\nPayload: '
    return head.encode() + message + b"\n"


def run(work: Callable[[], Awaitable[None]], seconds: float, descriptor: int = 1) -> None:
    """Do ``work`` until ``seconds`` have passed (0: for ever), a signal comes, or nobody reads the output.

    Raises the WalstreamError that ``work`` ends with.
    """
    try:
        trio.run(_until_ended, work, seconds, descriptor)
    except BaseExceptionGroup as group:
        ends = list(leaves(group))
        for error in ends:
            if isinstance(error, WalstreamError):
                raise error from None
        if not all(isinstance(error, _ReaderGone) for error in ends):
            raise


async def _until_ended(work: Callable[[], Awaitable[None]], seconds: float, descriptor: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signals, nursery.cancel_scope)
        nursery.start_soon(_end_without_reader, descriptor, nursery.cancel_scope)
        with trio.move_on_after(seconds or float("inf")):
            await work()
        nursery.cancel_scope.cancel()


async def _end_on_signals(
    everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    # What is ignored stays so: nohup, and Ctrl+C for what a script runs in the background.
    ending = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    with trio.open_signal_receiver(*ending) as received:
        task_status.started()
        await anext(received)
        everything.cancel()


async def _end_without_reader(descriptor: int, everything: trio.CancelScope) -> None:
    """A pipe tells by POLLERR that its other end was closed; a quiet table would never find out by writing."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    poll = select.poll()
    poll.register(descriptor, 0)
    while True:
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
            everything.cancel()
        await trio.sleep(GONE_SECONDS)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody else made the terminal non-blocking
            with contextlib.suppress(InterruptedError):
                select.select([], [descriptor], [])


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The exceptions in all groups inside a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
