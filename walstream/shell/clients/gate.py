"""The gate: how many connections, handshakes and requests one address, one key and one user may have.

Whose an address is behind proxies is told by ``channel/address``; a connection's own joins and messages are bounded by
its session. All counters are as many as there are connections, or bounded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
import trio

from walstream.channel.address import Network, client_address, counted_as, parse_networks
from walstream.channel.rate import Bucket, Buckets
from walstream.config import Config

BURST_SECONDS: Final = 10.0
"""Seconds' worth of what a rate allows that may come at once."""

Kind = Literal["address", "key", "user"]


class GateLimits(msgspec.Struct, frozen=True):
    """Counts, and rates per second; 0 for no bound. ``trusted_proxies``: as configured."""

    max_connections_per_address: int = 0
    max_connections_per_key: int = 0
    max_connections_per_user: int = 0
    max_connects_per_second_per_address: float = 0
    max_joins_per_second_per_node: float = 0
    max_requests_per_second_per_address: float = 0
    max_requests_per_second_per_key: float = 0
    trusted_proxies: str = ""

    @classmethod
    def of(cls, config: Config) -> GateLimits:
        """Taken from ``config``."""
        return cls(**{name: getattr(config, name) for name in cls.__struct_fields__})


class Ticket:
    """One connection's place in the counts, to be given back once."""

    __slots__ = ("_counted", "_gate")

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate
        self._counted: set[tuple[Kind, str]] = set()

    def count(self, kind: Kind, name: str) -> bool:
        """Count the connection for a name as well, once; False where there is no room for another."""
        gate = self._gate
        if gate is None or not name or (kind, name) in self._counted:
            return True
        if not gate.take_place(kind, name):
            return False
        if gate.counts(kind):
            self._counted.add((kind, name))
        return True

    def give_back(self) -> None:
        """The connection has gone."""
        gate, self._gate = self._gate, None
        if gate is not None:
            for kind, name in self._counted:
                gate.free_place(kind, name)


class Gate:
    """All counts of one node. ``clock``: monotonic seconds."""

    def __init__(self, limits: GateLimits | None = None, *, clock: Callable[[], float] = trio.current_time) -> None:
        """Raises ConfigError for proxies that are no addresses."""
        self._clock = clock
        self._places: Counter[tuple[Kind, str]] = Counter()
        self.relimit(limits or GateLimits())

    def relimit(self, limits: GateLimits) -> None:
        """Go by other limits from now on. Rates begin anew, and connections count that come under a limit.

        Raises ConfigError for proxies that are no addresses, with nothing changed.
        """
        self._trusted: tuple[Network, ...] = parse_networks(limits.trusted_proxies)
        self._most: dict[Kind, int] = {
            "address": limits.max_connections_per_address,
            "key": limits.max_connections_per_key,
            "user": limits.max_connections_per_user,
        }
        connects = limits.max_connects_per_second_per_address
        self._connects = Buckets(connects, max(1.0, connects * BURST_SECONDS))
        self.requests: dict[Literal["address", "key"], Buckets] = {
            "address": _buckets(limits.max_requests_per_second_per_address),
            "key": _buckets(limits.max_requests_per_second_per_key),
        }
        joins = limits.max_joins_per_second_per_node
        self.node_joins = Bucket(joins, joins * BURST_SECONDS, 0.0) if joins else None

    def now(self) -> float:
        """The time by the gate's clock."""
        return self._clock()

    def address(self, host: str, forwarded: Sequence[str]) -> str:
        """The address of whoever is behind a peer of address ``host``."""
        return client_address(host, forwarded, self._trusted) if self._trusted else host

    def may_connect(self, address: str) -> bool:
        """Count a handshake; False where its address has made too many."""
        return self._connects.take(counted_as(address), self._clock())

    def enter(self, address: str, key: str, user: str) -> Ticket | Kind:
        """A place for a connection, or what there are too many of. ``key``: what it presented."""
        ticket = Ticket(self)
        named: tuple[tuple[Kind, str], ...] = (
            ("address", counted_as(address)), ("key", digest(key)), ("user", user),
        )  # fmt: skip
        for kind, name in named:
            if not ticket.count(kind, name):
                ticket.give_back()
                return kind
        return ticket

    def take_place(self, kind: Kind, name: str) -> bool:
        """Count one more connection for a name, where there is room."""
        most = self._most[kind]
        if not most:
            return True  # neither counted nor remembered
        if self._places[kind, name] >= most:
            return False
        self._places[kind, name] += 1
        return True

    def counts(self, kind: Kind) -> bool:
        """Whether there is a limit, so that names are remembered."""
        return self._most[kind] > 0

    def free_place(self, kind: Kind, name: str) -> None:
        """Count one less."""
        left = self._places[kind, name] - 1
        if left > 0:
            self._places[kind, name] = left
        else:
            del self._places[kind, name]


def _buckets(rate: float) -> Buckets:
    return Buckets(rate, rate * BURST_SECONDS)


def digest(key: str) -> str:
    """A key's name in the counts: keys themselves are not kept."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() if key else ""
