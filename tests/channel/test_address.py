"""Whose address a connection has, behind proxies and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.address import client_address, counted_as, parse_networks
from walstream.errors import ConfigError

PROXIES = parse_networks("127.0.0.1, 10.0.0.0/8, fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.9", ["203.0.113.7"], "192.0.2.9"),  # no proxy of ours: it may say what it likes
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),  # the beginning is the client's own invention
        ("10.1.1.1", ["1.1.1.1", "203.0.113.7, 10.2.2.2"], "203.0.113.7"),
        ("10.1.1.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.1.1.1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("10.1.1.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.1.1.1", ["unknown"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7, nonsense, 10.2.2.2"], "10.2.2.2"),
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("fd00::1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("", ["203.0.113.7"], ""),
    ],
)
def test_a_proxy_is_believed_only_if_it_is_trusted(peer: str, forwarded: list[str], address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1%eth0", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_as_its_network(address: str, key: str) -> None:
    assert counted_as(address) == key


@given(st.text(max_size=60), st.lists(st.text(max_size=300), max_size=30))
def test_nothing_that_a_header_says_raises(peer: str, forwarded: list[str]) -> None:
    client_address(peer, forwarded, PROXIES)
    client_address("10.0.0.1", forwarded, PROXIES)
    counted_as(peer)


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.0/99", "example.org", "1.2.3.4;5.6.7.8"])
def test_what_is_no_network_is_an_error_that_names_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        parse_networks(text)
