"""Frames of audiences: made of the change that an audience holds, kept until the tick ends, written once per socket.

Which changes an audience gets is decided in ``fanout``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from walstream.protocol.websocket import frame_header, text_frames
from walstream.shell.delivery.audience import Audience
from walstream.shell.delivery.outbox import Outbox, broadcast

SLICE_SOCKETS: Final = 512
"""Sockets that are written to before other tasks get a turn."""


class Frames:
    """What waits for the end of the tick. Every method but ``flush`` is synchronous. ``count``: frames to sockets."""

    def __init__(self) -> None:
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
                audience.pending += (header, prefix, data, suffix)
                self._dirty[audience] = None
            if audience.shared or audience.joining:
                self._push(audience, b"".join((header, prefix, data, suffix)))
            self.count += len(audience.solo)
        audience.held.clear()

    def add(self, audience: Audience, payloads: Sequence[bytes]) -> None:
        """Let an audience that consists of solo sockets get these texts, one frame each."""
        audience.pending += text_frames(payloads)
        self._dirty[audience] = None
        self.count += len(payloads) * len(audience.solo)

    def _push(self, audience: Audience, frame: bytes) -> None:
        for outbox in audience.shared:
            outbox.push(frame)
            self._dirty_outboxes[outbox] = None
        for outbox, member in audience.joining.items():
            if member.live:
                outbox.push(frame)
                self._dirty_outboxes[outbox] = None
                self.count += 1
        self.count += len(audience.shared)

    def drain(self, audience: Audience) -> None:
        """Write what waits before the audience's sockets change."""
        if audience.rest:
            broadcast(audience.rest, audience.chunk)
            audience.rest = []
        if audience.pending:
            chunk = b"".join(audience.pending)
            audience.pending.clear()
            broadcast(audience.solo, chunk)
        self._dirty.pop(audience, None)

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
            audience.chunk = b"".join(audience.pending)
            audience.rest = list(audience.solo)
            audience.pending.clear()
        while audience.rest:
            part = audience.rest[:SLICE_SOCKETS]
            del audience.rest[:SLICE_SOCKETS]
            broadcast(part, audience.chunk)
            if audience.rest:
                await trio.lowlevel.checkpoint()
        audience.chunk = b""
        if not audience.pending:
            self._dirty.pop(audience, None)
