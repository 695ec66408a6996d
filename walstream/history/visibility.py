"""Which transactions are live for whoever holds a snapshot: those that the snapshot does not see.

Pure arithmetic on xids and positions; taking the snapshot is the shell's work.
"""

from __future__ import annotations

from walstream.model import Snapshot, Transaction

_EPOCH = 1 << 32
_HALF = 1 << 31


def extend_xid(xid: int, near: int) -> int:
    """The 64-bit xid whose low 32 bits are ``xid`` and which lies nearest to ``near`` (PostgreSQL 17, 66.1)."""
    full = (near & ~(_EPOCH - 1)) | xid
    if full > near + _HALF and full >= _EPOCH:
        return full - _EPOCH
    if full + _HALF < near:
        return full + _EPOCH
    return full


def is_live(transaction: Transaction, snapshot: Snapshot, server_start: float | None = None) -> bool:
    """Whether the snapshot does not see the transaction, so that its holder has to be told of it.

    ``server_start``: when the server that sent the transaction started, in seconds since the epoch. If it was
    restarted after the snapshot was taken, WAL that was not flushed by then may be lost and its xids used again, so
    what was committed beyond the snapshot's ``flush_lsn`` is live whatever its xid. Below it xids still decide: a
    commit record may have been flushed while the snapshot did not see the transaction yet.
    """
    if (
        server_start is not None
        and server_start != snapshot.server_start
        and transaction.commit_lsn > snapshot.flush_lsn
    ):
        return True
    xid = extend_xid(transaction.xid, snapshot.xmax)
    if xid < snapshot.xmin:
        return False
    return xid >= snapshot.xmax or xid in snapshot.in_progress


def settled(transaction: Transaction, snapshot: Snapshot) -> bool:
    """Whether this transaction and everything committed after it is live: the snapshot needs no more comparing.

    A transaction that the snapshot sees had its commit record in the WAL before ``insert_lsn`` was read. This holds
    after a restart of the server, too, where the lower ``flush_lsn`` would already do.
    """
    return transaction.commit_lsn > snapshot.insert_lsn
