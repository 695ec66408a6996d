"""Outbox: what one socket has still to be sent, and the non-blocking writes that send it.

Whole WebSocket frames go in, shared between sockets; who gets which frame is decided in ``fanout``, and what becomes of
a socket that reads too slowly by the owner's ``on_overflow``.
"""

from __future__ import annotations

import enum
import errno
import socket
from collections.abc import Callable, Iterable
from typing import Final

import trio

JOIN_BYTES: Final = 64 * 1024
"""Up to here queued chunks are copied into one write; above, the kernel gathers them (writev) and nothing is copied."""

GATHER_CHUNKS: Final = 1024
"""Chunks of one gathering write: Linux's IOV_MAX."""

EARLY_FLUSH_BYTES: Final = 256 * 1024
"""A burst that is queued beyond this goes out before the end of its tick."""


URGENT_BYTES: Final = 64 * 1024
"""Room for urgent frames above an outbox's limit."""


class State(enum.IntEnum):
    """What an outbox takes. OPEN: everything. OVERFLOW and later: nothing."""

    OPEN = 0
    OVERFLOW = 1  # beyond its limit; the owner decides
    SEALED = 2  # its last frame is queued or sent
    DEAD = 3  # the connection is gone


class Outbox:
    """The unsent frames of one plain, non-blocking stream socket (``tls.TlsOutbox`` for one that speaks TLS).

    All methods are synchronous and none raises: a dead connection is noticed here, remembered, and left to the reader
    side to report. ``limit_bytes``: queued bytes above which the next chunk is refused; a single chunk of any size
    is always taken by an empty outbox. ``wake``: called when a rest remains that the kernel would not take; it must
    arrange for ``drain`` to run. ``on_overflow``: called once, with the outbox in state OVERFLOW and its queue
    untouched; the refused chunk is the first that the socket does not get. It may call ``finish`` (the socket is
    closed), now or later, but must not change who is subscribed to what: it is called in the middle of a fan-out.
    """

    __slots__ = (
        "_offset",
        "_progress",
        "_queue",
        "_send",
        "_sock",
        "_wake",
        "limit_bytes",
        "on_overflow",
        "parked",
        "queued_bytes",
        "sent_bytes",
        "state",
    )

    def __init__(
        self,
        sock: socket.socket,
        limit_bytes: int,
        wake: Callable[[Outbox], None],
        on_overflow: Callable[[Outbox], None] | None = None,
    ) -> None:
        self._sock = sock
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._wake = wake
        self._queue: list[bytes] | None = None  # None exactly when OPEN and empty: the one test of the fast path
        self._offset = 0  # bytes of the first chunk that are sent
        self._progress: trio.Event | None = None
        self.on_overflow = on_overflow
        self.limit_bytes = limit_bytes
        self.queued_bytes = 0
        self.sent_bytes = 0
        self.parked = False  # a rest waits for the kernel; ``drain`` is or will be running
        self.state = State.OPEN

    @property
    def held_bytes(self) -> int:
        """Bytes that are counted as queued and are in no chunk any more; none on a plain socket."""
        return 0

    def push(self, chunk: bytes) -> bool:
        """Queue whole frames for the next ``flush``. False when they were refused: no room, or see ``state``."""
        if self.offer(chunk):
            return True
        self.overflow()
        return False

    def offer(self, chunk: bytes) -> bool:
        """As ``push``, but where there is no room nothing changes: whoever offers knows what to do."""
        queue = self._queue
        if queue is None:
            self._queue = [chunk]
            self.queued_bytes = len(chunk)
            return True
        if self.state:
            return False
        queued = self.queued_bytes + len(chunk)
        if queued > self.limit_bytes:
            return False
        queue.append(chunk)
        self.queued_bytes = queued
        if queued > EARLY_FLUSH_BYTES and not self.parked:
            self._write(queue)
        return True

    def push_urgent(self, chunk: bytes) -> bool:
        """Queue whole frames before all others, but after a frame that is half sent; for pings and heartbeat replies.

        Has a little room of its own above ``limit_bytes`` and never overflows; False when even that is used up.
        """
        if self.state or self.queued_bytes > self.limit_bytes + URGENT_BYTES:
            return False
        if self._queue is None:
            self._queue = [chunk]
        else:
            self._queue.insert(1 if self._offset else 0, chunk)
        self.queued_bytes += len(chunk)
        return True

    def flush(self) -> None:
        """One non-blocking write of what is queued; parks the rest. Nothing to do while parked."""
        if self._queue and not self.parked:
            self._write(self._queue)

    def finish(self, last: bytes) -> None:
        """Drop every frame that is not begun, send ``last`` and take nothing more."""
        if self.state >= State.SEALED:
            return
        self.state = State.SEALED
        begun = self._queue[:1] if self._queue and self._offset else []
        self._queue = [*begun, last]
        self.queued_bytes = sum(map(len, self._queue)) - self._offset + self.held_bytes
        self.flush()

    def seal(self, last: bytes) -> None:
        """Send ``last`` after all that is queued and take nothing more."""
        if self.state >= State.OVERFLOW:
            self.finish(last)
            return
        self.state = State.SEALED
        self._queue = [*(self._queue or ()), last]
        self.queued_bytes += len(last)
        self.flush()

    def die(self) -> None:
        """The connection is gone: drop everything."""
        self.state = State.DEAD
        self._queue = []
        self._offset = self.queued_bytes = 0
        self.parked = False
        if self._progress is not None:
            self._announce_progress(self._progress)

    async def drain(self) -> None:
        """Write whenever the kernel has room, until nothing is queued. Cancelling it loses nothing."""
        while self.parked:
            try:
                await trio.lowlevel.wait_writable(self._sock)
            except (OSError, ValueError, trio.ClosedResourceError):  # closed meanwhile, or its number is -1 already
                self.die()
                return
            queue = self._queue
            if queue is not None:
                self._write(queue)

    async def wait_empty(self) -> None:
        """Wait until everything queued is sent, or the outbox is dead."""
        await self.wait_below(1)

    async def wait_below(self, size: int) -> None:
        """Wait until fewer than ``size`` bytes are queued, or the outbox is dead."""
        while self.queued_bytes >= size:
            if self._progress is None:
                self._progress = trio.Event()
            await self._progress.wait()
        await trio.lowlevel.checkpoint()

    def overflow(self) -> None:
        """Take nothing more, as if a chunk had been one too many."""
        if self.state:
            return
        self.state = State.OVERFLOW
        if self._queue is None:
            self._queue = []
        if self.on_overflow is not None:
            self.on_overflow(self)

    def _park(self) -> None:
        if not self.parked:
            self.parked = True
            self._wake(self)

    def _announce_progress(self, waiting: trio.Event) -> None:
        self._progress = None
        waiting.set()

    def _write(self, queue: list[bytes]) -> None:
        try:
            sent = self._write_some(queue)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # the machine is short of memory for a moment
                sent = 0
            else:
                self.die()
                return
        self.sent_bytes += sent
        self.queued_bytes -= sent
        if not self.queued_bytes:
            self._queue = [] if self.state else None
            self._offset = 0
            self.parked = False
        else:
            self._drop_sent(queue, sent)
            self._park()
        if self._progress is not None:
            self._announce_progress(self._progress)

    def _write_some(self, queue: list[bytes]) -> int:
        offset = self._offset
        if len(queue) == 1:
            return self._send(memoryview(queue[0])[offset:] if offset else queue[0])
        if self.queued_bytes <= JOIN_BYTES:
            data = b"".join(queue)
            return self._send(memoryview(data)[offset:] if offset else data)
        buffers: list[bytes | memoryview] = list(queue[:GATHER_CHUNKS])
        if offset:
            buffers[0] = memoryview(queue[0])[offset:]
        return self._sock.sendmsg(buffers)

    def _drop_sent(self, queue: list[bytes], sent: int) -> None:
        sent += self._offset
        whole = 0
        while sent >= len(queue[whole]):
            sent -= len(queue[whole])
            whole += 1
        del queue[:whole]
        self._offset = sent


def broadcast(outboxes: Iterable[Outbox], chunk: bytes, *, patient: bool = False) -> list[Outbox]:
    """Send the same whole frames to many sockets, each with one non-blocking write where nothing is queued before.

    Returns the outboxes that had no room; they have overflowed, unless ``patient``. Costs about a microsecond per
    socket beside the system call: this is the loop that decides how many clients a core can serve.
    """
    size = len(chunk)
    refused: list[Outbox] = []
    for outbox in outboxes:
        if outbox._queue is None:  # noqa: SLF001 - same module; a property would double the loop's cost
            try:
                sent = outbox._send(chunk)  # noqa: SLF001
            except OSError:
                sent = 0
            if sent == size:
                outbox.sent_bytes += size
            else:
                _send_rest(outbox, chunk, sent)
        elif not outbox.state:
            if outbox.offer(chunk) if patient else outbox.push(chunk):
                outbox.flush()
            else:
                refused.append(outbox)
    return refused


def _send_rest(outbox: Outbox, chunk: bytes, sent: int) -> None:
    """Queue what the kernel did not take."""
    outbox.sent_bytes += sent
    outbox._queue = [chunk]  # noqa: SLF001
    outbox._offset = sent  # noqa: SLF001
    outbox.queued_bytes = len(chunk) - sent + outbox.held_bytes
    if sent:
        outbox._park()  # noqa: SLF001
    else:
        outbox.flush()  # tells a full buffer from a dead connection


class Drains:
    """The tasks that wait for room in full sockets: one per parked outbox, none for all others.

    Must be running (``run``) while its ``wake`` is called.
    """

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    def wake(self, outbox: Outbox) -> None:
        """Drain ``outbox`` in a task of its own."""
        if self._nursery is not None:
            self._nursery.start_soon(outbox.drain)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the drain tasks, for ever. Cancelling it leaves queued frames unsent."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
