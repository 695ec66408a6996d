"""What came from other nodes: each envelope once, in order, holes noticed, and who is there at all.

Plain values; two clocks enter as arguments. ``now``: milliseconds since the Unix epoch, as in envelopes. ``tick``:
monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from walstream.bus.envelope import ALONGSIDE, Envelope
from walstream.bus.items import Bye
from walstream.errors import BusError

WINDOW_MS: Final = 120_000
"""An envelope whose time is further away is refused; inside, numbers are remembered."""

START_SLACK_MS: Final = 5_000
"""How far the clocks of two nodes may differ after each has been set by the database's."""

ALONGSIDE_MAX: Final = 100_000
"""Numbers remembered of one node's lane ALONGSIDE. Of more the lowest are refused from then on, seen or not: what was
overtaken by so many comes by the WAL."""


class Reception(NamedTuple):
    """What an envelope means. ``gap``: something is missing before it, or was forgotten. ``found``: its node was no
    peer. ``lost``: its node says goodbye.
    """

    gap: bool
    found: bool
    lost: bool


class _Node:
    __slots__ = ("alongside", "floor", "heard_at", "is_peer", "newest", "told_anew")

    def __init__(self) -> None:
        self.is_peer = False
        self.heard_at = 0.0
        self.newest = -1
        self.told_anew = False  # a hole before its next envelope has been announced already
        self.floor = -1  # of lane ALONGSIDE: no number up to it is taken any more
        self.alongside: OrderedDict[int, int] = OrderedDict()  # number → its envelope's time


class Inbox:
    """The incoming side of the node ``node``. ``timeout``: seconds of silence after which a node counts as lost."""

    def __init__(self, node: str, *, timeout: float) -> None:
        self._own = node
        self._timeout = timeout
        self._nodes: OrderedDict[str, _Node] = OrderedDict()  # the one heard last is the last
        self._oldest_ms = 0
        self._back_at = 0.0
        self._is_away = True
        self.peers: frozenset[str] = frozenset()

    def away(self) -> None:
        """Nothing can be heard for now: silence means nothing."""
        self._is_away = True

    def back(self, now: int, tick: float) -> None:
        """It can be heard again; what was missed has been announced as a gap. At the first time what was said before
        is refused: somebody may have kept it.
        """
        if not self._oldest_ms:
            self._oldest_ms = now - START_SLACK_MS
        self._is_away = False
        self._back_at = tick
        for node in self._nodes.values():
            node.heard_at = tick
            node.told_anew = True

    def excuse(self, tick: float) -> None:
        """We were asleep ourselves: everybody has the whole timeout again."""
        for node in self._nodes.values():
            node.heard_at = max(node.heard_at, tick)

    def admit(self, envelope: Envelope, now: int, tick: float) -> Reception | None:
        """Take an envelope; None for one of our own. Raises BusError for one that was taken before or is too old."""
        if envelope.node == self._own:
            return None
        if abs(envelope.at - now) > WINDOW_MS or envelope.at < self._oldest_ms:
            raise BusError("said at another time", "late")
        known = self._nodes.get(envelope.node)
        node = known if known is not None else _Node()
        if envelope.lane == ALONGSIDE:
            _admit_alongside(node, envelope)
            gap = found = lost = False
        else:
            if envelope.number <= node.newest:
                raise BusError("said before", "replayed")
            is_hole, was_heard = self._is_hole(node, envelope.number, tick), node.newest >= 0
            node.newest = envelope.number
            node.told_anew = False
            leaves = any(type(item) is Bye for item in envelope.items)
            lost, found = leaves and node.is_peer, not leaves and not node.is_peer
            gap = is_hole or (found and was_heard)  # what it had told us was forgotten when it was lost
            if lost or found:
                node.is_peer = found
                self._count(envelope.node, is_peer=found)
        node.heard_at = tick
        self._nodes[envelope.node] = node
        self._nodes.move_to_end(envelope.node)
        return Reception(gap, found, lost)

    def expired(self, now: int, tick: float) -> list[str]:
        """Nodes that have become silent, each once. To be asked about once a second."""
        if self._is_away:
            return []
        silent = [name for name, node in self._nodes.items() if node.is_peer and tick - node.heard_at > self._timeout]
        for name in silent:
            self._nodes[name].is_peer = False
            self._count(name, is_peer=False)
        self._forget(now, tick)
        return silent

    def _is_hole(self, node: _Node, number: int, tick: float) -> bool:
        if node.told_anew:
            return False
        if node.newest >= 0:
            return number != node.newest + 1
        # Never heard: new itself, or we are; else it has been speaking where we did not hear it.
        return number > 2 and tick - self._back_at > self._timeout

    def _forget(self, now: int, tick: float) -> None:
        """What can no longer be told again needs no memory: its time is refused."""
        for node in self._nodes.values():
            taken = node.alongside
            while taken and now - next(iter(taken.values())) > WINDOW_MS:
                taken.popitem(last=False)
        keep = 2 * WINDOW_MS / 1000 + self._timeout
        old = [name for name, node in self._nodes.items() if not node.is_peer and tick - node.heard_at > keep]
        for name in old:
            del self._nodes[name]

    def _count(self, name: str, *, is_peer: bool) -> None:
        self.peers = self.peers | {name} if is_peer else self.peers - {name}


def _admit_alongside(node: _Node, envelope: Envelope) -> None:
    taken = node.alongside
    if envelope.number in taken or envelope.number <= node.floor:
        raise BusError("said before", "replayed")
    taken[envelope.number] = envelope.at
    if len(taken) > ALONGSIDE_MAX:
        oldest, _ = taken.popitem(last=False)
        node.floor = max(node.floor, oldest)
