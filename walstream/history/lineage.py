"""Which histories of WAL a server goes on with: its timeline's, and those of its ancestors up to where it left them.

A standby that was promoted has everything that its primary wrote before the promotion, and a timeline of its own from
there on (PostgreSQL 17, 25.3.6 Timelines).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from walstream.history.position import cluster_digest
from walstream.lsn import Lsn

_NONE: Final[Mapping[str, Lsn]] = MappingProxyType({})


class Lineage(NamedTuple):
    """``cluster``: digest of system and timeline. ``ancestors``: by their digests, where each was left."""

    cluster: str = "00000000"
    ancestors: Mapping[str, Lsn] = _NONE

    def has(self, cluster: str, commit_lsn: int) -> bool:
        """Whether the commit that ended there, in that cluster's history, is one of this history as well."""
        return cluster == self.cluster or commit_lsn <= self.ancestors.get(cluster, -1)


def lineage(system_identifier: str, timeline: int, history: str = "") -> Lineage:
    """``history``: contents of the timeline's history file, of which each line names an ancestor and where it was left.

    What is no such line is passed over, as the server does (``readTimeLineHistory``). Without a line for it an ancestor
    is another cluster.
    """
    ancestors = {}
    for line in history.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit() and "/" in fields[1]:
            ancestors[cluster_digest(system_identifier, int(fields[0]))] = Lsn.parse(fields[1])
    return Lineage(cluster_digest(system_identifier, timeline), ancestors)
