"""Positions: where a subscriber is in the stream of changes, as opaque text on the wire.

A position holds enough to notice that it means nothing here: another cluster, another timeline, a reused LSN.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple, Self

from walstream.lsn import Lsn

_TEXT = re.compile(r"([0-9a-f]{8})\.(0|[1-9a-f][0-9a-f]{0,7})\.(0|[1-9a-f][0-9a-f]{0,15})\.(0|[1-9][0-9]{0,17})")


def cluster_digest(system_identifier: str, timeline: int) -> str:
    """Eight hex digits that tell one cluster and timeline from another (IDENTIFY_SYSTEM, PostgreSQL 17, 53.4)."""
    return hashlib.blake2b(f"{system_identifier}/{timeline}".encode(), digest_size=4).hexdigest()


class Position(NamedTuple):
    """One change: its transaction's xid and commit end, and its ordinal inside the transaction."""

    cluster: str
    xid: int
    commit_lsn: Lsn
    ordinal: int

    def __str__(self) -> str:
        return f"{head(self.cluster, self.xid, self.commit_lsn)}{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` writes and nothing else, for a position has one text. Raises ValueError."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a position: {text[:80]!r}")
        return cls(match[1], int(match[2], 16), Lsn(int(match[3], 16)), int(match[4]))


def head(cluster: str, xid: int, commit_lsn: int) -> str:
    """What all positions of one transaction begin with; the ordinal in decimal follows."""
    return f"{cluster}.{xid:x}.{commit_lsn:x}."
