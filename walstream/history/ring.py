"""The bounded ring of recent transactions: what a join may have missed, and what the slot still holds back.

It remembers and evicts; reading the WAL and writing to sockets happen elsewhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Final

import msgspec

from walstream.history.lineage import Lineage
from walstream.history.visibility import extend_xid
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction

EVERYTHING: Final = 1 << 62
"""An ordinal that no change has."""

_FIRST_EPOCH = 1 << 32  # so that xids before the first one that was met have a number, too


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One transaction in the ring. ``sequence`` counts from 0 and never repeats; ``at``: monotonic seconds.

    ``highest_xid``: the highest xid up to and including this transaction, counted on from the first that was met.
    ``before``: the commit end before its own, whether that transaction was kept or passed by.
    """

    sequence: int
    transaction: Transaction
    at: float
    highest_xid: int
    before: Lsn


def _commit_lsn(entry: Entry) -> Lsn:
    return entry.transaction.commit_lsn


class Ring:
    """Transactions in commit order, until the first bound (bytes, seconds, WAL bytes) ends the window.

    ``confirmable`` is the newest commit end before the window: the only position that may be confirmed, and always
    below the oldest commit that is still in it. The last two bounds are kept by the owner's ``evict``, which
    has to be called while no transactions come, too. ``size``: bytes that the transactions hold in memory.
    ``told``: up to where clients were told that changes may be missing. ``lost``: why what was committed before the
    stream's beginning cannot be had, in the word that clients are told; "" where it has left the window like anything
    else. ``floor``: every commit after it that brought something to keep is in the ring, or is yet to come. Of the
    commit at the floor itself ``floor_ordinal`` is the newest change, ``EVERYTHING`` where that is not known.
    ``lineage``: whose commits these are.
    """

    def __init__(self, *, bytes_max: int, seconds: float, wal_bytes: int) -> None:
        self.bytes_max = bytes_max
        self.seconds = seconds
        self.wal_bytes = wal_bytes
        self.lineage = Lineage()
        self.size = 0
        self.next_sequence = 0
        self.newest = Lsn(0)  # commit end of the newest transaction that was appended or passed by
        self.confirmable = Lsn(0)
        self.told = Lsn(0)
        self.lost = ""
        self.start = Lsn(0)  # where the slot's stream began
        self._dropped = Lsn(0)  # commit end of the newest transaction that has left the window
        self._dropped_ordinal = EVERYTHING  # of its newest change
        self._entries: deque[Entry] = deque()
        self._by_xid: dict[int, Entry] = {}
        self._highest_xid: int | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def cluster(self) -> str:
        """Digest of the system and timeline that are read."""
        return self.lineage.cluster

    @property
    def floor(self) -> Lsn:
        """See the class. What was passed by does not raise it: who has nothing to get from there has missed nothing."""
        return max(self.start, self._dropped)

    @property
    def end(self) -> Lsn:
        """A commit end after which everything is yet to come that may still come."""
        return max(self.newest, self.floor, self.told)

    @property
    def floor_ordinal(self) -> int:
        """See the class."""
        return self._dropped_ordinal if self._dropped >= self.start else EVERYTHING

    @property
    def oldest_sequence(self) -> int:
        """Of the oldest transaction in the window; of the next one to come if there is none."""
        return self._entries[0].sequence if self._entries else self.next_sequence

    def seconds_kept(self, now: float) -> float:
        """Age of the oldest transaction in the window. ``now``: monotonic seconds."""
        return now - self._entries[0].at if self._entries else 0.0

    def is_known(self, commit_lsn: int) -> bool:
        """Whether a transaction with this commit end was appended or passed by before: it is being read again."""
        return commit_lsn <= self.newest

    def append(self, transaction: Transaction, now: float) -> int:
        """Take over a transaction that is not known. Returns its sequence number. ``now``: monotonic seconds.

        Evicts what the new one leaves no room or time for; one larger than the whole ring does not stay.
        """
        sequence = self.next_sequence
        xid = transaction.xid
        highest = self._highest_xid
        extended = _FIRST_EPOCH + xid if highest is None else extend_xid(xid, highest)
        self._highest_xid = extended if highest is None else max(highest, extended)
        entry = Entry(sequence, transaction, now, self._highest_xid, self.newest)
        self.next_sequence += 1
        self.newest = transaction.commit_lsn
        self._entries.append(entry)
        self._by_xid[xid] = entry
        self.size += transaction.size
        while self.size > self.bytes_max:
            self._drop_oldest()
        if self._entries and now - self._entries[0].at > self.seconds:
            self.evict(now)
        return sequence

    def pass_by(self, commit_lsn: int) -> None:
        """Take note of a commit that brought nothing to keep: it may be confirmed when all that came before may."""
        self.newest = Lsn(commit_lsn)
        if not self._entries:
            self.confirmable = self.newest

    def evict(self, now: float, restart_lsn: int = 0, wal_end: int = 0) -> None:
        """Drop what lies outside the window.

        ``restart_lsn``: from where the slot keeps WAL back, 0 if unknown. ``wal_end``: how far the server's WAL goes,
        0 if unknown; the ring knows only the commits that it was given. WAL before ``confirmable`` is not held back by
        the window, however old ``restart_lsn`` is (a transaction may be open since): dropping more would not free it.
        """
        entries = self._entries
        end = max(self.newest, wal_end)
        while entries:
            oldest = entries[0]
            held_from = max(restart_lsn, self.confirmable)
            if not (
                self.size > self.bytes_max
                or now - oldest.at > self.seconds
                or (held_from and end - held_from > self.wal_bytes)
            ):
                break
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        entry = self._entries.popleft()
        self.size -= entry.transaction.size
        self._dropped = entry.transaction.commit_lsn
        changes = entry.transaction.changes
        self._dropped_ordinal = changes[-1].ordinal if isinstance(changes, list) else EVERYTHING  # else it is in a file
        self.confirmable = self._entries[0].before if self._entries else self.newest
        if self._by_xid.get(entry.transaction.xid) is entry:
            del self._by_xid[entry.transaction.xid]

    def clear(self) -> None:
        """Forget everything: the window is empty, and all of it may be confirmed."""
        while self._entries:
            self._drop_oldest()

    def restart(self, lineage: Lineage, start: int = 0, *, lost: str = "") -> None:
        """What was known has no continuation. ``start``: the commit end after which the stream goes on."""
        self._entries.clear()
        self._by_xid.clear()
        self._highest_xid = None
        self.size = 0
        self.newest = self.confirmable = self.told = self._dropped = Lsn(0)
        self.start = Lsn(start)
        self._dropped_ordinal = EVERYTHING
        self.lost = lost
        self.lineage = lineage

    def by_commit(self, commit_lsn: int) -> Transaction | None:
        """The transaction with exactly this commit end, if the ring has it."""
        at = bisect_left(self._entries, commit_lsn, key=_commit_lsn)
        if at == len(self._entries) or self._entries[at].transaction.commit_lsn != commit_lsn:
            return None
        return self._entries[at].transaction

    def sequence_from(self, commit_lsn: int) -> int:
        """Sequence number of the first transaction that ends at ``commit_lsn`` or later; that of the next for none."""
        at = bisect_left(self._entries, commit_lsn, key=_commit_lsn)
        return self._entries[at].sequence if at < len(self._entries) else self.next_sequence

    def at(self, sequence: int) -> Transaction | None:
        """The transaction with this sequence number, if the ring has it."""
        if not self._entries or not self._entries[0].sequence <= sequence < self.next_sequence:
            return None
        return self._entries[sequence - self._entries[0].sequence].transaction

    def before(self, sequence: int) -> Lsn:
        """The commit end before a transaction in the window; ``end`` for what is yet to come."""
        if not self._entries or sequence >= self.next_sequence:
            return self.end
        return max(self.floor, self._entries[max(0, sequence - self._entries[0].sequence)].before)

    def before_live(self, snapshot: Snapshot, asked_at: int) -> Lsn:
        """A commit end after which everything comes that the snapshot does not see; see ``maybe_live``."""
        found = self.maybe_live(snapshot, asked_at)
        if not found:
            return self.end
        return self.before(found[0][0])

    def maybe_live(self, snapshot: Snapshot, asked_at: int) -> list[tuple[int, Transaction]]:
        """Sequence numbers and transactions, oldest first, of all in the ring that the snapshot may not see.

        ``asked_at``: ``next_sequence`` when the snapshot was asked for. What came later may be live; what came
        before only if the server had written its commit and not yet ended it, that is as one of the snapshot's xids in
        progress or at or above its ``xmax``: the latter are not listed, and lie close to the newest. The rest of the
        ring is not looked at. Which of them are live is for ``is_live`` to say.
        """
        found: dict[int, Transaction] = {}
        for xid in snapshot.in_progress:
            entry = self._by_xid.get(xid & 0xFFFFFFFF)
            if entry is not None:
                found[entry.sequence] = entry.transaction
        for entry in reversed(self._entries):
            if entry.sequence < asked_at and entry.highest_xid < extend_xid(
                snapshot.xmax & 0xFFFFFFFF, entry.highest_xid
            ):
                break
            found[entry.sequence] = entry.transaction
        return sorted(found.items())
