"""Memberships in memory: those that somebody needs, followed through the WAL, and others for a moment.

Asking for them, and what follows from them, is ``directory``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import trio

from walstream.channel.registry import Membership
from walstream.history.visibility import is_live
from walstream.model import Change, Operation, Snapshot, Transaction
from walstream.shell.channels.seats import Seat
from walstream.shell.database.channel_rows import Pair, member_change

IDLE_SECONDS: Final = 5.0
IDLE_MAX: Final = 10_000
"""How long, and of how many, an answer counts that nobody sits on. The WAL keeps it fresh meanwhile."""


class _Entry:
    """What is known of a pair. ``snapshot``: the changes in it are those it sees. ``pins``: questions that need it."""

    __slots__ = ("idle_since", "membership", "pins", "seats", "snapshot")

    def __init__(self, membership: Membership | None, snapshot: Snapshot) -> None:
        self.membership = membership
        self.snapshot = snapshot
        self.seats: dict[Seat, None] = {}
        self.pins = 0
        self.idle_since = trio.current_time()

    @property
    def is_in_use(self) -> bool:
        return bool(self.seats or self.pins)


class Memberships:
    """Everything is synchronous. ``is_worth_keeping``: whether it matters for a moment that a pair is no membership."""

    def __init__(self, is_worth_keeping: Callable[[Pair], bool]) -> None:
        self._is_worth_keeping = is_worth_keeping
        self._entries: dict[Pair, _Entry] = {}
        self._idle: dict[Pair, None] = {}  # those that nobody uses, the longest idle first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._entries)

    def knows(self, pair: Pair) -> bool:
        """Whether ``membership`` may be believed."""
        entry = self._entries.get(pair)
        if entry is None:
            return False
        return entry.is_in_use or trio.current_time() - entry.idle_since <= IDLE_SECONDS

    def membership(self, pair: Pair) -> Membership | None:
        """Of a pair that is known."""
        return self._entries[pair].membership

    def watch(self, pair: Pair, seat: Seat) -> None:
        """A seat hangs on a pair, if it is known."""
        entry = self._entries.get(pair)
        if entry is not None:
            entry.seats[seat] = None
            self._idle.pop(pair, None)

    def unwatch(self, pair: Pair, seat: Seat) -> None:
        """It does no more."""
        entry = self._entries.get(pair)
        if entry is not None:
            entry.seats.pop(seat, None)
            self.rest((pair,))

    def pin(self, pair: Pair) -> None:
        """Keep what is known of a pair until ``unpin``."""
        entry = self._entries.get(pair)
        if entry is not None:
            entry.pins += 1
            self._idle.pop(pair, None)

    def unpin(self, pair: Pair) -> None:
        """One who needed it needs it no more."""
        entry = self._entries.get(pair)
        if entry is not None:
            entry.pins = max(entry.pins - 1, 0)
            self.rest((pair,))

    def rest(self, pairs: Iterable[Pair]) -> None:
        """Keep what is known of pairs that nobody uses for a moment: requests and refused joins come in rows."""
        now = trio.current_time()
        for pair in pairs:
            entry = self._entries.get(pair)
            if entry is None or entry.is_in_use:
                continue
            if entry.membership is None and not self._is_worth_keeping(pair):
                # Who has just been made a member comes at once, maybe before the WAL has said so here.
                self._drop(pair)
                continue
            entry.idle_since = now
            self._idle.pop(pair, None)
            self._idle[pair] = None
        while len(self._idle) > IDLE_MAX:
            self._drop(next(iter(self._idle)))

    def forget_idle(self) -> None:
        """What nobody uses may be wrong."""
        for pair in list(self._idle):
            self._drop(pair)

    def _drop(self, pair: Pair) -> None:
        self._idle.pop(pair, None)
        entry = self._entries.get(pair)
        if entry is not None and not entry.is_in_use:
            del self._entries[pair]

    def know(self, members: Mapping[Pair, Membership | None], snapshot: Snapshot) -> None:
        """Take over an answer. Seats are judged by the caller."""
        for pair, membership in members.items():
            entry = self._entries.get(pair)
            if entry is None:
                self._entries[pair] = _Entry(membership, snapshot)
            else:
                entry.membership, entry.snapshot = membership, snapshot

    def changed(
        self, transaction: Transaction, change: Change, server_start: float | None, touched: dict[Seat, None]
    ) -> None:
        """Apply a change of the WAL, unless it is known already. Adds to ``touched`` whose seats hang on it."""
        pairs: dict[Pair, Membership | None] = {}
        if change.operation is Operation.TRUNCATE:
            pairs = dict.fromkeys(self._entries)
        else:
            ended, membership = member_change(change)
            if ended is not None:
                pairs[ended] = None
            if membership is not None:
                pairs[membership.channel_id, membership.user] = membership
        for pair, membership in pairs.items():
            entry = self._entries.get(pair)
            if entry is not None and is_live(transaction, entry.snapshot, server_start):
                entry.membership = membership
                touched |= entry.seats
