"""Frames of audiences: made of the change that an audience holds, kept until the tick ends, written once per socket.

Which changes an audience gets is decided in ``fanout``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import trio

from walstream.protocol.websocket import frame_header, text_frames
from walstream.shell.delivery.audience import Audience, Place
from walstream.shell.delivery.outbox import Outbox, broadcast

SLICE_SOCKETS: Final = 512
"""Sockets that are written to before other tasks get a turn."""


Slow: TypeAlias = Callable[[Audience, Outbox, Place], None]
"""A socket had no room for an audience's frames. ``Place``: the first change that it did not take."""


class Frames:
    """What waits for the end of the tick. Every method but ``flush`` is synchronous. ``count``: frames to sockets.

    ``slow``: called when the frame, or the chunk, has gone to all others; it takes the socket out of the audience.
    """

    def __init__(self, slow: Slow) -> None:
        self._slow = slow
        self._dirty: dict[Audience, None] = {}
        self._dirty_outboxes: dict[Outbox, None] = {}
        self.count = 0

    def finish(self, audience: Audience, *, last: bool) -> None:
        """Turn the held change into frames: for the tick's one write, and at once for who is not part of it."""
        suffix = audience.suffix
        for rendered, prefix in audience.held:
            data = rendered.data(last)
            header = frame_header(len(prefix) + len(data) + len(suffix))
            if audience.solo:
                if not audience.pending:
                    audience.pending_from = audience.held_at
                audience.pending += (header, prefix, data, suffix)
                self._dirty[audience] = None
            if audience.shared or audience.joining:
                self._push(audience, b"".join((header, prefix, data, suffix)))
            self.count += len(audience.solo)
        audience.held.clear()

    def add(self, audience: Audience, payloads: Sequence[bytes], place: Place) -> None:
        """Let an audience that consists of solo sockets get these texts, one frame each. ``place``: the first."""
        if not audience.pending:
            audience.pending_from = place
        audience.pending += text_frames(payloads)
        self._dirty[audience] = None
        self.count += len(payloads) * len(audience.solo)

    def _push(self, audience: Audience, frame: bytes) -> None:
        refused = []
        joining = [outbox for outbox, member in audience.joining.items() if member.live]
        for outbox in (*audience.shared, *joining):
            if outbox.offer(frame):
                self._dirty_outboxes[outbox] = None
                self.count += 1
            elif not outbox.state:
                refused.append(outbox)
        if refused:
            place = audience.held_at
            assert place is not None
            for outbox in refused:
                self._slow(audience, outbox, place)

    def drain(self, audience: Audience) -> None:
        """Write what waits before the audience's sockets change."""
        if audience.rest:
            rest, audience.rest = audience.rest, []
            self._write(audience, rest, audience.chunk, audience.chunk_from)
        if audience.pending:
            chunk = b"".join(audience.pending)
            audience.pending.clear()
            self._write(audience, audience.solo, chunk, audience.pending_from)
        self._dirty.pop(audience, None)

    def _write(self, audience: Audience, outboxes: Iterable[Outbox], chunk: bytes, place: Place | None) -> None:
        for outbox in broadcast(outboxes, chunk, patient=True):
            if not outbox.state:
                assert place is not None
                self._slow(audience, outbox, place)

    async def flush(self) -> None:
        """End a tick: one write per socket with something to send. Waits only for its turn, never for a reader.

        May be called while another call waits for its turn. Cancelled, it leaves the rest to the next call.
        """
        written = 0
        while self._dirty:
            audience = next(iter(self._dirty))
            if len(audience.solo) <= SLICE_SOCKETS and not audience.rest:
                written += len(audience.solo)
                self.drain(audience)
            else:
                await self._drain_sliced(audience)
            if written > SLICE_SOCKETS:
                written = 0
                await trio.lowlevel.checkpoint()
        for outbox in self._dirty_outboxes:
            outbox.flush()
        self._dirty_outboxes.clear()

    async def _drain_sliced(self, audience: Audience) -> None:
        """Write a chunk to the audience's sockets with turns for others in between, who may add to ``pending`` only.

        Whoever has to change the sockets meanwhile, or write what is newer, finishes this first: see ``drain``.
        """
        if not audience.rest:
            audience.chunk, audience.chunk_from = b"".join(audience.pending), audience.pending_from
            audience.rest = list(audience.solo)
            audience.pending.clear()
        while audience.rest:
            part = audience.rest[:SLICE_SOCKETS]
            del audience.rest[:SLICE_SOCKETS]
            self._write(audience, part, audience.chunk, audience.chunk_from)
            if audience.rest:
                await trio.lowlevel.checkpoint()
        audience.chunk = b""
        if not audience.pending:
            self._dirty.pop(audience, None)
