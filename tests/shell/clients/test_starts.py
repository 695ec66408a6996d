"""Where a join's items begin, and what its client is told of that before anything else."""

from __future__ import annotations

import pytest

from walstream.channel.join import ChangeItem
from walstream.history.lineage import Lineage
from walstream.history.position import Position
from walstream.history.resume import Start
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Snapshot, Transaction
from walstream.shell.clients.join_check import Wish
from walstream.shell.clients.starts import find

NOW = Snapshot(50, 50, frozenset(), 1000, 1000, 1.0)
KNOWN, OLD = "c1c1c1c1.2a.64.3", "c1c1c1c1.1.1.0"


def ring() -> Ring:
    ring = Ring(bytes_max=1 << 30, seconds=1e9, wal_bytes=1 << 60)
    ring.restart(Lineage("c1c1c1c1"), 10)
    ring.append(Transaction(0x2A, Lsn(0x64), 0, ()), 0)
    return ring


def wish(since: str = "", *, snapshot: bool = False) -> Wish:
    item = ChangeItem(b"{}", schema="public", table="t", since=since or None, snapshot=snapshot)
    return Wish(item, "public", "t", None, Position.parse(since) if since else None)


GONE_ON = Start(Lsn(0x64), 3, 0x2A)


@pytest.mark.parametrize(
    ("wishes", "begins", "event"),
    [
        ([wish()], [], ""),
        ([wish(), wish()], [], ""),
        ([wish(KNOWN), wish()], [GONE_ON, NOW], "resumed"),
        ([wish(OLD), wish(KNOWN)], [], "gap"),
        ([wish(snapshot=True)], [None], ""),
        ([wish(snapshot=True), wish(), wish(KNOWN)], [None, NOW, GONE_ON], ""),
        ([wish(KNOWN, snapshot=True)], [GONE_ON], "resumed"),
        ([wish(OLD, snapshot=True)], [None], ""),
        ([wish(OLD, snapshot=True), wish(OLD), wish(KNOWN)], [None, NOW, NOW], "gap"),
    ],
)
def test_where_items_begin(wishes: list[Wish], begins: list[object], event: str) -> None:
    found = find(wishes, ring(), NOW, 1, ())
    assert list(found.begins) == begins
    assert found.details.get("event", "") == event
    assert bool(found.message) == bool(event)
