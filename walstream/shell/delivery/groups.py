"""Groups: the sockets of one room, and what waits to be written to all of them with one call each.

Frames come ready-made (``walstream.channel.broadcast``); who is in which room is decided in ``shell.channels``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import trio

from walstream.channel.broadcast import Ear, Frames
from walstream.shell.delivery.outbox import Outbox, broadcast

SLICE_SOCKETS: Final = 512
"""Sockets that are written to before other tasks get a turn."""

EARLY_BYTES: Final = 256 * 1024
"""A group whose waiting frames are larger is written before the end of the round: memory stays bounded."""


class GroupMember:
    """One socket in one group."""

    __slots__ = ("ear", "group", "outbox")

    def __init__(self, outbox: Outbox, ear: Ear, group: Group) -> None:
        self.outbox = outbox
        self.ear = ear
        self.group = group


class _Waiting(NamedTuple):
    frames: Frames
    without: Collection[GroupMember]


class _Chunk(NamedTuple):
    """What is being written in slices: ``rest`` has not got it yet."""

    data: bytes
    rest: list[Outbox]


class Group:
    """The sockets of one room. Synchronous; who changes its members first writes what they have to get."""

    __slots__ = ("_chunks", "_members", "_waiting", "_waiting_bytes", "frames_out")

    def __init__(self) -> None:
        self._members: tuple[dict[Outbox, GroupMember], ...] = tuple({} for _ in Ear)
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._chunks: list[_Chunk] = []
        self.frames_out = 0

    def __len__(self) -> int:
        return sum(map(len, self._members))

    def join(self, outbox: Outbox, ear: Ear) -> GroupMember:
        """Add a socket: it gets what is pushed from now on, after what is in its outbox already."""
        self.flush()
        member = GroupMember(outbox, ear, self)
        self._members[ear][outbox] = member
        return member

    def leave(self, member: GroupMember) -> None:
        """Take a socket out; what was pushed before is in its outbox then."""
        self.flush()
        self._members[member.ear].pop(member.outbox, None)

    def push(self, frames: Frames, without: Collection[GroupMember] = ()) -> None:
        """Send to all but ``without``, by the next ``flush`` at the latest."""
        self._waiting.append(_Waiting(frames, without))
        self._waiting_bytes += len(frames[Ear.V2])
        if self._waiting_bytes > EARLY_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write everything that waits, now."""
        while self.write(SLICE_SOCKETS * 1000):
            pass

    def write(self, sockets_max: int) -> int:
        """Write to about so many sockets at most. Returns to how many; 0 when nothing waits any more."""
        if not self._chunks:
            if not self._waiting:
                return 0
            self._gather()
        written = 0
        while self._chunks and written < sockets_max:
            data, rest = self._chunks[-1]
            part = rest[:sockets_max]
            del rest[:sockets_max]
            broadcast(part, data)
            written += len(part)
            if not rest:
                self._chunks.pop()
        return max(written, 1)

    def _gather(self) -> None:
        """Turn what waits into one chunk per kind of socket, and one for each socket that is left out of something."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        apart = {member for item in waiting for member in item.without}
        for member in apart:
            data = b"".join(item.frames[member.ear] for item in waiting if member not in item.without)
            if data and member.outbox in self._members[member.ear]:
                self._chunks.append(_Chunk(data, [member.outbox]))
        left_out = {member.outbox for member in apart}
        for ear in Ear:
            outboxes = self._members[ear]
            data = b"".join(item.frames[ear] for item in waiting) if outboxes else b""
            if data:
                rest = [outbox for outbox in outboxes if outbox not in left_out] if left_out else list(outboxes)
                self._chunks.append(_Chunk(data, rest))
                self.frames_out += len(rest) * sum(1 for item in waiting if item.frames[ear])
        self.frames_out += sum(len(waiting) - 1 for _ in apart)


class Groups:
    """Flushes the groups that something was pushed to, once per round of the scheduler. Only ``flush`` waits."""

    def __init__(self) -> None:
        self._dirty: dict[Group, None] = {}
        self.wake = trio.Event()
        self.frames_out = 0

    def push(self, group: Group, frames: Frames, without: Collection[GroupMember] = ()) -> None:
        """See ``Group.push``; written in the round that follows."""
        group.push(frames, without)
        self._dirty[group] = None
        self.wake.set()

    async def flush(self) -> None:
        """Write what waits. Waits only for its turn; cancelled, it leaves the rest to the next call."""
        self.wake = trio.Event()
        written = 0
        while self._dirty:
            group = next(iter(self._dirty))
            wrote = group.write(SLICE_SOCKETS)
            if not wrote:
                del self._dirty[group]
                self.frames_out += group.frames_out
                group.frames_out = 0
            written += wrote
            if written >= SLICE_SOCKETS:
                written = 0
                await trio.lowlevel.checkpoint()
