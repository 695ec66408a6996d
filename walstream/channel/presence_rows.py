"""One node's presences as rows for the database: who is where, and which rows have yet to be written.

One row per person and topic, however many entries share it. Writing them is the shell's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from walstream.rooms import PresenceEntry

Status = Literal["online", "away"]

IDLE_SECONDS: Final = 300.0
"""Who does nothing for so long is away."""

BATCH_BYTES: Final = 256 * 1024
"""Of metadata in one batch, unless one row alone has more."""

NAME_BYTES_MAX: Final = 2000
"""Person and topic together; an index of PostgreSQL holds little more. Who has a longer name gets no row."""


class RowKey(NamedTuple):
    """What rows of a node are told apart by."""

    user_id: str
    topic: str


class PresenceRow(NamedTuple):
    """A person who is there. ``metadata``: JSON object text."""

    key: RowKey
    status: Status
    metadata: bytes


class _Held(NamedTuple):
    key: RowKey
    status: Status
    metadata: bytes


class _Said(msgspec.Struct):
    status: msgspec.Raw = msgspec.Raw(b"")


_said: Final = msgspec.json.Decoder(_Said)


class PresenceRows:
    """What the rows of a node should be, beside what was written of them. Times are seconds of any one clock.

    A person's row is online where any of his entries is, else away; its metadata is that of the entry that changed
    last. Only what is different in the end becomes pending. Memory is bounded by the entries and the rows written.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._entries: dict[str, _Held] = {}
        self._people: dict[RowKey, dict[str, None]] = {}  # their entries, the one that changed last at the end
        self._heard: dict[str, float] = {}  # who is not idle, by the time of the newest sign of life
        self._written: dict[RowKey, PresenceRow | None] = {}  # None: there, with other values
        self._changed: dict[RowKey, None] = {}

    def __len__(self) -> int:
        """How many people are in topics, each topic counted by itself."""
        return len(self._people)

    @property
    def backlog(self) -> int:
        """How many rows may have to be written, at most."""
        return len(self._changed)

    def changed(self, entry: PresenceEntry, user_id: str | None, now: float) -> None:
        """An entry came, changed or, without meta, went. It is of ``user_id``, or of whom its key names."""
        old = self._entries.pop(entry.entry, None)
        if old is not None:
            self._part(entry.entry, old.key)
        self._heard.pop(entry.entry, None)
        if entry.meta is None:
            return
        user = _storable(user_id or "") or _storable(entry.key) or entry.entry
        key = RowKey(user, _storable(entry.room.subtopic))
        if len(key.user_id.encode()) + len(key.topic.encode()) > NAME_BYTES_MAX:
            return
        self._entries[entry.entry] = _Held(key, _status(entry.meta), entry.meta)
        self._people.setdefault(key, {})[entry.entry] = None
        self._heard[entry.entry] = now
        self._changed[key] = None

    def touched(self, entry: str, now: float) -> None:
        """The client of an entry did something. Nothing happens where there is no such entry."""
        held = self._entries.get(entry)
        if held is not None:
            if self._heard.pop(entry, None) is None:
                self._changed[held.key] = None
            self._heard[entry] = now

    def age(self, now: float) -> None:
        """See who has become idle."""
        while self._heard:
            entry, heard = next(iter(self._heard.items()))
            if now - heard < self._idle_seconds:
                return
            del self._heard[entry]
            self._changed[self._entries[entry].key] = None

    def pending(self, limit: int) -> tuple[list[PresenceRow], list[RowKey]]:
        """Rows to be written and rows to be set offline, ``limit`` together or fewer; both empty: all is written."""
        rows: list[PresenceRow] = []
        gone: list[RowKey] = []
        size = 0
        for key in tuple(self._changed):
            row = self._row(key)
            if row == self._written.get(key) and (row is not None or key not in self._written):
                del self._changed[key]
            elif row is None:
                gone.append(key)
            elif size and size + len(row.metadata) > BATCH_BYTES:
                break
            else:
                rows.append(row)
                size += len(row.metadata)
            if len(rows) + len(gone) == limit:
                break
        for key in (*(row.key for row in rows), *gone):
            self._written[key] = None  # until ``wrote``: a write that fails may have taken effect all the same
        return rows, gone

    def wrote(self, rows: list[PresenceRow], gone: list[RowKey]) -> None:
        """They are in the database now; what has changed since stays pending."""
        for row in rows:
            self._written[row.key] = row
        for key in gone:
            self._written.pop(key, None)

    def found(self, statuses: Mapping[RowKey, str]) -> None:
        """All of the node's rows that are not offline, as the database has them: what is wrong becomes pending."""
        for key in self._written.keys() - statuses.keys():
            del self._written[key]
            self._changed[key] = None
        for key, status in statuses.items():
            row = self._written.get(key)
            if row is None or row.status != status:
                self._written[key] = None
                self._changed[key] = None

    def _part(self, entry: str, key: RowKey) -> None:
        mates = self._people[key]
        del mates[entry]
        if not mates:
            del self._people[key]
        self._changed[key] = None

    def _row(self, key: RowKey) -> PresenceRow | None:
        mates = self._people.get(key)
        if mates is None:
            return None
        is_online = any(entry in self._heard and self._entries[entry].status == "online" for entry in mates)
        return PresenceRow(key, "online" if is_online else "away", self._entries[next(reversed(mates))].metadata)


def _status(meta: bytes) -> Status:
    if b'"status"' in meta:
        try:
            if _said.decode(meta).status == msgspec.Raw(b'"away"'):
                return "away"
        except msgspec.DecodeError:
            pass
    return "online"


def _storable(text: str) -> str:
    """PostgreSQL's text holds every character but one."""
    return text.replace("\0", "")
