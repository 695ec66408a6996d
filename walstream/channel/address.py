"""Whose address a connection has: behind trusted proxies, and as what is counted.

Who is bounded by it is the shell's gate to say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, TypeAlias

from walstream.errors import ConfigError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

HOPS_MAX: Final = 20
"""Proxies in a row that are looked through."""

SUBNET_BITS: Final = 64
"""Of an IPv6 address: who has one address has all of the network that it is in."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """A comma list of addresses and CIDR networks. Raises ConfigError."""
    found: list[Network] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ipaddress.ip_network(part, strict=False))
        except ValueError as error:
            repair = "a comma list of addresses and networks, such as 127.0.0.1,10.0.0.0/8,fd00::/8"
            raise ConfigError(f"trusted_proxies: {error}", repair=repair) from error
    return tuple(found)


def client_address(host: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address: the peer's own, or what its proxies say if all of them are trusted.

    ``host``: the peer's address. ``forwarded``: the values of its ``X-Forwarded-For`` headers in order. They are read
    from the end, since anybody can write the beginning; what is no address ends the search.
    """
    found = parse_address(host)
    if found is None or not _is_in(found, trusted):
        return host
    hops = [hop.strip() for value in forwarded[-HOPS_MAX:] for hop in value.split(",")[-HOPS_MAX:]]
    for hop in reversed(hops[-HOPS_MAX:]):
        named = parse_address(_without_port(hop))
        if named is None:
            break
        found = named
        if not _is_in(named, trusted):
            break
    return str(found)


def counted_as(host: str) -> str:
    """The key by which an address is counted: an IPv6 address by its /64, an IPv4 address in IPv6 as such."""
    address = parse_address(host)
    if address is None:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, SUBNET_BITS), strict=False))
    return str(address)


def parse_address(text: str) -> Address | None:
    """An address without its zone; None for what is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address


def _without_port(hop: str) -> str:
    """``192.0.2.1:80`` and ``[2001:db8::1]:80``, as some proxies write."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
