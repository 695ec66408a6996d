"""What was met lately, bounded: ids of what comes by two ways, and messages that queries may not see yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import Final

from walstream.history.visibility import is_live
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction
from walstream.rooms import Broadcast, RoomKey

IDS_MAX: Final = 131_072
"""At least so many are remembered, at most twice as many: half a minute at the highest rate, 25 MB."""

FRESH_MAX: Final = 4096
FRESH_BYTES_MAX: Final = 8 * 1024 * 1024
"""Messages that the WAL brought last. Queries see each a moment later, or when a synchronous standby answers."""


class RecentIds:
    """A set that forgets the oldest half when it is full."""

    def __init__(self, ids_max: int = IDS_MAX) -> None:
        self._max = ids_max
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, id_: str) -> bool:
        key = _key(id_)
        return key in self._new or key in self._old

    def add(self, id_: str) -> bool:
        """Remember an id; whether it is new."""
        key = _key(id_)
        if key in self._new or key in self._old:
            return False
        if len(self._new) >= self._max:
            self._new, self._old = set(), self._new
        self._new.add(key)
        return True


def _key(id_: str) -> bytes:
    try:
        return bytes.fromhex(id_.replace("-", ""))
    except ValueError:
        return id_.encode("utf-8", "surrogatepass")


class FreshMessages:
    """The messages that the WAL brought last, by transaction."""

    def __init__(self) -> None:
        self.count = 0  # of all that were ever added
        self._messages: deque[tuple[int, Lsn, Broadcast]] = deque()
        self._size = 0

    def add(self, transaction: Transaction, broadcast: Broadcast) -> None:
        """Remember a message that was delivered."""
        self.count += 1
        self._messages.append((transaction.xid, transaction.commit_lsn, broadcast))
        self._size += len(broadcast.payload)
        while len(self._messages) > FRESH_MAX or self._size > FRESH_BYTES_MAX:
            self._size -= len(self._messages.popleft()[2].payload)

    def unseen(self, room: RoomKey, snapshot: Snapshot, known: Collection[str], until: int) -> list[Broadcast]:
        """Those of a room that a snapshot does not see, and that are not known, in the order of commits.

        ``until``: what ``count`` was; what was added later is left out.
        """
        kept = max(0, until - self.count + len(self._messages))
        return [
            broadcast
            for xid, lsn, broadcast in islice(self._messages, kept)
            if broadcast.room == room and broadcast.id not in known and is_live(Transaction(xid, lsn, 0, ()), snapshot)
        ]
