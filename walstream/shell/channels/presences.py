"""Presence of every room on all nodes: what this node's sockets track, what others tell, and one diff per tick.

What a room's presences add up to is ``walstream.channel.presence``; rows of the table are ``presence_mirror``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from walstream.bus.items import AskState, PresenceItem, StateItem
from walstream.channel.presence import PresenceRoom
from walstream.rooms import PresenceEntry, RoomKey
from walstream.shell.channels.bus import Bus

SQL_NODE: Final = "sql"
"""The node of presences that have no socket: rows which SQL or the command line wrote."""

SECONDS_PER_MEMBER: Final = 20e-6
"""Least time between two diffs of a room, for each of its members: a diff costs about a third of that to send."""

PART_ENTRIES: Final = 200
"""Entries of one part of a node's whole state."""

STATE_SECONDS: Final = 1.0
"""Least time between two tellings of this node's whole state."""

ASK_SECONDS: Final = 1.0


class Mirror(Protocol):
    """Who keeps the presence table in step. Synchronous; neither raises."""

    def changed(self, entry: PresenceEntry, user_id: str | None) -> None:
        """A presence of this node came, changed or ended."""
        ...

    def touched(self, entry: str) -> None:
        """Its client did something."""
        ...


class _Series:
    """The parts of another node's state that have come so far."""

    __slots__ = ("entries", "next_part", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.next_part = 0
        self.entries: list[PresenceEntry] = []


class Presences:
    """All rooms' presences. Every method is synchronous and none raises.

    ``tell``: send a ``presence_diff`` payload to a room. ``size``: how many sockets a room has here.
    """

    def __init__(
        self,
        bus: Bus,
        mirror: Mirror,
        *,
        tell: Callable[[RoomKey, bytes], None],
        size: Callable[[RoomKey], int],
    ) -> None:
        self._bus = bus
        self._mirror = mirror
        self._tell = tell
        self._size = size
        self._rooms: dict[RoomKey, PresenceRoom] = {}
        self._of_node: dict[str, set[RoomKey]] = {}
        self._own: dict[str, PresenceEntry] = {}
        self._dirty: dict[RoomKey, None] = {}
        self._due: dict[RoomKey, float] = {}  # rooms that were told lately: not again before
        self._outgoing: list[PresenceEntry] = []
        self._series: dict[str, _Series] = {}
        self._series_number = 0
        self._state_wanted = self._ask_wanted = False
        self._state_due = self._ask_due = 0.0

    def __len__(self) -> int:
        """Presences of this node."""
        return len(self._own)

    def state(self, room: RoomKey) -> bytes:
        """The ``presence_state`` payload of a room, as its members have been told so far."""
        found = self._rooms.get(room)
        return found.state if found is not None else b"{}"

    def changed(self, entry: PresenceEntry, user_id: str | None) -> None:
        """One of this node's own presences came, changed or ended."""
        if entry.meta is None:
            self._own.pop(entry.entry, None)
        else:
            self._own[entry.entry] = entry
        self._apply(self._bus.node, entry)
        self._mirror.changed(entry, user_id)
        self._outgoing.append(entry)

    def touched(self, entry: str) -> None:
        """The client of one of this node's presences did something."""
        self._mirror.touched(entry)

    # -- other nodes

    def heard(self, node: str, entries: Iterable[PresenceEntry]) -> None:
        """Another node's presences came, changed or ended."""
        for entry in entries:
            self._apply(node, entry)
        # What a series says beside this may be older than it: the next one is whole again.
        if self._series.pop(node, None) is not None:
            self.ask()

    def heard_state(self, node: str, item: StateItem) -> None:
        """A part of another node's whole state."""
        series = self._series.get(node)
        if series is None or series.number != item.series:
            series = self._series[node] = _Series(item.series)
        if item.part != series.next_part:
            del self._series[node]
            if item.part:
                self.ask()
            return
        series.next_part += 1
        series.entries += item.entries
        if item.last:
            del self._series[node]
            self._replace(node, series.entries)

    def outside(self, entries: Iterable[PresenceEntry]) -> None:
        """Everything that SQL and the command line track now."""
        self._replace(SQL_NODE, entries)

    def lost(self, node: str) -> None:
        """A node is gone, and so are its presences."""
        self._series.pop(node, None)
        for room in list(self._of_node.get(node, ())):
            if self._rooms[room].drop(node):
                self._dirty[room] = None
        self._of_node.pop(node, None)

    def tell_state(self) -> None:
        """Tell other nodes everything that this one tracks, soon."""
        self._state_wanted = True

    def ask(self) -> None:
        """Something of other nodes may be missing: have them tell everything, soon."""
        self._ask_wanted = True

    # -- time

    @property
    def is_waiting(self) -> bool:
        """Whether ``commit`` has something to do, now or later."""
        return bool(self._dirty or self._outgoing or self._state_wanted or self._ask_wanted)

    def commit(self, now: float) -> float | None:
        """End a tick: one diff for each room that changed, unless it had one a moment ago.

        ``now``: monotonic seconds. Returns when to call again, None for not before something changes.
        """
        self._publish(now)
        later = [self._state_due] if self._state_wanted else []
        if self._ask_wanted:
            later.append(self._ask_due)
        for room in list(self._dirty):
            due = self._due.get(room, 0.0)
            if due > now:
                later.append(due)
                continue
            del self._dirty[room]
            self._commit_room(room, now)
        return min(later, default=None)

    def _commit_room(self, room: RoomKey, now: float) -> None:
        presences = self._rooms[room]
        diff = presences.commit()
        size = self._size(room)
        if diff is not None and size:
            self._tell(room, diff)
        if presences.is_empty:
            del self._rooms[room]
            self._due.pop(room, None)
            for rooms in self._of_node.values():
                rooms.discard(room)
        else:
            self._due[room] = now + size * SECONDS_PER_MEMBER

    def _publish(self, now: float) -> None:
        bus = self._bus
        outgoing, self._outgoing = self._outgoing, []
        if not bus.peers:
            self._state_wanted = self._ask_wanted = False  # who comes says Hello, and gets it all then
            return
        for start in range(0, len(outgoing), PART_ENTRIES):
            bus.publish(PresenceItem(tuple(outgoing[start : start + PART_ENTRIES])))
        if self._state_wanted and now >= self._state_due:
            self._state_wanted, self._state_due = False, now + STATE_SECONDS
            for part in self._parts():
                bus.publish(part)
        if self._ask_wanted and now >= self._ask_due:
            self._ask_wanted, self._ask_due = False, now + ASK_SECONDS
            bus.publish(AskState())

    def _parts(self) -> Iterator[StateItem]:
        self._series_number += 1
        entries = list(self._own.values())
        starts = range(0, max(len(entries), 1), PART_ENTRIES)
        for part, start in enumerate(starts):
            some = tuple(entries[start : start + PART_ENTRIES])
            yield StateItem(self._series_number, part, part + 1 == len(starts), some)

    # -- rooms

    def _room(self, room: RoomKey) -> PresenceRoom:
        found = self._rooms.get(room)
        if found is None:
            found = self._rooms[room] = PresenceRoom()
        return found

    def _apply(self, node: str, entry: PresenceEntry) -> None:
        if entry.meta is None and entry.room not in self._rooms:
            return
        self._of_node.setdefault(node, set()).add(entry.room)
        if self._room(entry.room).apply(node, entry):
            self._dirty[entry.room] = None

    def _replace(self, node: str, entries: Iterable[PresenceEntry]) -> None:
        by_room: dict[RoomKey, list[PresenceEntry]] = {room: [] for room in self._of_node.get(node, ())}
        for entry in entries:
            by_room.setdefault(entry.room, []).append(entry)
        for room, some in by_room.items():
            self._of_node.setdefault(node, set()).add(room)
            if self._room(room).replace(node, some):
                self._dirty[room] = None
