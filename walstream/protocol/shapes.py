"""The three forms in which a change reaches a client, each as prefix, rendered change and suffix of a frame.

A frame is these three joined; the prefix is made once per (topic, vsn, ids), the change once per (form, columns).
Who gets a frame is decided by the router and the shell's fan-out.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from walstream.model import Change, Operation, Relation, Transaction
from walstream.protocol.changes import RECORD_BYTES_MAX, InsertRun, Moment, renderer
from walstream.protocol.phoenix import change_frame_parts, frame_parts


class TransactionText(msgspec.Struct, frozen=True):
    """What the changes of one transaction share on the wire, encoded once.

    ``position_head``: the position of every change up to its ordinal, in the form that ``walstream.history.position``
    reads; the two rooms do not know each other, a test holds them together.
    """

    moment: Moment
    position_head: bytes
    max_record_bytes: int = RECORD_BYTES_MAX

    @classmethod
    def of(cls, transaction: Transaction, cluster: str, max_record_bytes: int = RECORD_BYTES_MAX) -> TransactionText:
        """``cluster``: the database cluster's name inside positions."""
        head = b"%b.%x.%x." % (cluster.encode("ascii"), transaction.xid, transaction.commit_lsn)
        return cls(Moment(transaction.commit_at, transaction.xid), head, max_record_bytes)

    def position(self, change: Change) -> bytes:
        """The change's position, which is its identity on the wire."""
        return b"%b%d" % (self.position_head, change.ordinal)


class Shape(enum.Enum):
    """What a joined topic's change frames look like."""

    CHANGES = "changes"  # event postgres_changes, payload {"ids": …, "data": …}
    LEGACY = "legacy"  # event INSERT and so on, payload the data object
    FEED = "feed"  # event INSERT and so on, payload the table feed's message

    # Looked up for every change; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    def prefix(self, vsn: str, topic: str, operation: Operation, ids: Sequence[int]) -> bytes:
        """What stands before the rendered change."""
        if self is Shape.CHANGES:
            listed = ",".join(map(str, ids)).encode("ascii")
            return b'%b{"ids":[%b],"data":' % (change_frame_parts(vsn, topic)[0], listed)
        return frame_parts(vsn, topic, operation.value)[0]

    def suffix(self, vsn: str) -> bytes:
        """What stands after the rendered change."""
        tail = frame_parts(vsn, "", "")[1]
        return b"}" + tail if self is Shape.CHANGES else tail

    def insert_run(
        self, relation: Relation, columns: tuple[str, ...] | None, prefix: bytes, suffix: bytes
    ) -> InsertRun | None:
        """For transactions of nothing but INSERTs into one table; None where each has to be rendered by itself."""
        return None if self is Shape.FEED else renderer(relation, columns).insert_run(prefix, suffix)

    def render(self, change: Change, text: TransactionText, columns: tuple[str, ...] | None, *, last: bool) -> bytes:
        """The change itself. ``columns``: selected ones, None for all; ``last``: the last of its transaction."""
        encoder = renderer(change.relation, columns)
        position = text.position(change)
        if self is Shape.FEED:
            return encoder.feed(change, text.moment, position, last, text.max_record_bytes)
        return encoder.data(change, text.moment.commit_timestamp, position, last, text.max_record_bytes)
