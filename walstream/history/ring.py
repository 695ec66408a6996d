"""The bounded ring of recent transactions: what a join may have missed, and what the slot still holds back.

It remembers and evicts; reading the WAL and writing to sockets happen elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from walstream.lsn import Lsn
from walstream.model import Transaction


class Entry(NamedTuple):
    """One transaction in the ring. ``sequence`` counts from 0 and never repeats; ``at``: monotonic seconds."""

    sequence: int
    transaction: Transaction
    at: float


class Ring:
    """Transactions in commit order, until the first bound (bytes, seconds, WAL bytes) ends the window.

    ``confirmable`` is the newest commit end that has left the window: the only position that may be confirmed.
    """

    def __init__(self, *, bytes_max: int, seconds: float, wal_bytes: int) -> None:
        self.bytes_max = bytes_max
        self.seconds = seconds
        self.wal_bytes = wal_bytes
        self.cluster = "00000000"
        self.size = 0
        self.next_sequence = 0
        self.newest = Lsn(0)  # commit end of the newest transaction that was appended
        self.confirmable = Lsn(0)
        self._entries: deque[Entry] = deque()
        self._by_xid: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def is_known(self, commit_lsn: int) -> bool:
        """Whether a transaction with this commit end was appended before: it is being read again."""
        return commit_lsn <= self.newest

    def append(self, transaction: Transaction, now: float) -> int:
        """Take over a transaction. Returns its sequence number. ``now``: monotonic seconds."""
        sequence = self.next_sequence
        entry = Entry(sequence, transaction, now)
        self.next_sequence += 1
        self.newest = transaction.commit_lsn
        self._entries.append(entry)
        self._by_xid[transaction.xid] = entry
        self.size += transaction.size
        if self.size > self.bytes_max or now - self._entries[0].at > self.seconds:
            self.evict(now)
        return sequence

    def evict(self, now: float, restart_lsn: int = 0) -> None:
        """Drop what lies outside the window. ``restart_lsn``: from where the slot keeps WAL back, 0 if unknown."""
        entries = self._entries
        while entries:
            oldest = entries[0]
            kept_back = self.newest - restart_lsn if restart_lsn else 0
            if not (self.size > self.bytes_max or now - oldest.at > self.seconds or kept_back > self.wal_bytes):
                break
            if kept_back > self.wal_bytes:
                restart_lsn = oldest.transaction.commit_lsn
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        entry = self._entries.popleft()
        self.size -= entry.transaction.size
        self.confirmable = entry.transaction.commit_lsn
        if self._by_xid.get(entry.transaction.xid) is entry:
            del self._by_xid[entry.transaction.xid]

    def clear(self) -> None:
        """Forget everything: the window is empty, and all of it may be confirmed."""
        while self._entries:
            self._drop_oldest()

    def restart(self, cluster: str) -> None:
        """Another cluster or timeline: positions of the old one mean nothing any more."""
        self._entries.clear()
        self._by_xid.clear()
        self.size = 0
        self.newest = self.confirmable = Lsn(0)
        self.cluster = cluster

    def by_xid(self, xid: int) -> tuple[int, Transaction] | None:
        """Sequence number and transaction of a 32-bit xid, if the ring still has it."""
        entry = self._by_xid.get(xid)
        return None if entry is None else (entry.sequence, entry.transaction)

    def since(self, sequence: int) -> Iterator[tuple[int, Transaction]]:
        """The transactions from ``sequence`` on that the ring still has, oldest first."""
        if not self._entries:
            return
        first = max(0, sequence - self._entries[0].sequence)
        for entry in islice(self._entries, first, None):
            yield entry.sequence, entry.transaction
