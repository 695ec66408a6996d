"""Who hears what in which room: sockets in groups by what policies let them hear, nearly all of them in one.

Writing to a group is ``delivery.groups``; who may hear what is the ``directory``'s to say.
"""

from __future__ import annotations

from collections.abc import Collection

from walstream.channel.broadcast import Ear, Frames
from walstream.channel.permission import READS_ALL, Reading
from walstream.rooms import RoomKey
from walstream.shell.delivery.groups import Group, GroupMember, Groups
from walstream.shell.delivery.outbox import Outbox


class Audiences:
    """The sockets of all rooms. Everything is synchronous; ``groups`` writes what is pushed."""

    def __init__(self) -> None:
        self.groups = Groups()
        self._rooms: dict[RoomKey, dict[Reading, Group]] = {}

    def __len__(self) -> int:
        """Rooms with somebody in them."""
        return len(self._rooms)

    def size(self, room: RoomKey) -> int:
        """Sockets in a room."""
        return sum(map(len, self._rooms.get(room, {}).values()))

    def join(self, room: RoomKey, outbox: Outbox, ear: Ear, reading: Reading = READS_ALL) -> GroupMember:
        """Add a socket: it gets what is said from now on."""
        groups = self._rooms.setdefault(room, {})
        group = groups.get(reading)
        if group is None:
            group = groups[reading] = Group()
        return group.join(outbox, ear)

    def leave(self, room: RoomKey, member: GroupMember) -> None:
        """Take a socket out; what was said before is in its outbox then."""
        group = member.group
        group.leave(member)
        groups = self._rooms.get(room)
        if groups is None or len(group):
            return
        for reading, found in list(groups.items()):
            if found is group:
                del groups[reading]
        if not groups:
            del self._rooms[room]

    def say(self, room: RoomKey, frames: Frames, without: Collection[GroupMember] = ()) -> None:
        """A broadcast, to all but ``without`` who may hear broadcasts."""
        for reading, group in self._rooms.get(room, {}).items():
            if reading.broadcast:
                self.groups.push(group, frames, without)

    def tell_presence(self, room: RoomKey, frames: Frames) -> None:
        """Who came and went, to all who may know."""
        for reading, group in self._rooms.get(room, {}).items():
            if reading.presence:
                self.groups.push(group, frames)
