"""Counts and rates by address, key and user, and what of them stays in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.shell.clients.gate import Gate, GateLimits, Ticket, digest


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def entered(gate: Gate, address: str = "192.0.2.1", key: str = "k", user: str = "") -> Ticket:
    ticket = gate.enter(address, key, user)
    assert isinstance(ticket, Ticket)
    return ticket


@pytest.mark.parametrize(
    ("limits", "kind", "first", "other"),
    [
        (GateLimits(max_connections_per_address=1), "address", ("192.0.2.1", "k", "u"), ("192.0.2.2", "k", "u")),
        (GateLimits(max_connections_per_address=1), "address", ("2001:db8::1", "k", "u"), ("2001:db8:1::1", "k", "u")),
        (GateLimits(max_connections_per_key=1), "key", ("192.0.2.1", "k", "u"), ("192.0.2.1", "l", "u")),
        (GateLimits(max_connections_per_user=1), "user", ("192.0.2.1", "k", "u"), ("192.0.2.1", "k", "v")),
    ],
)
def test_one_too_many_is_named_and_others_come_in(
    limits: GateLimits, kind: str, first: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    gate = Gate(limits)
    ticket = entered(gate, *first)
    assert gate.enter(*first) == kind
    entered(gate, *other)
    ticket.give_back()
    entered(gate, *first)
    assert gate.enter(*first) == kind


def test_addresses_of_one_ipv6_network_count_together() -> None:
    gate = Gate(GateLimits(max_connections_per_address=1))
    entered(gate, "2001:db8::1")
    assert gate.enter("2001:db8::2", "k", "") == "address"


def test_who_is_refused_for_one_thing_takes_no_place_of_another() -> None:
    gate = Gate(GateLimits(max_connections_per_address=2, max_connections_per_user=1))
    entered(gate, user="u")
    assert gate.enter("192.0.2.1", "k", "u") == "user"
    entered(gate, user="v")
    assert gate.enter("192.0.2.1", "k", "w") == "address"


def test_a_user_who_is_named_later_is_counted_once() -> None:
    gate = Gate(GateLimits(max_connections_per_user=1))
    first, second = entered(gate), entered(gate)
    assert first.count("user", "u")
    assert first.count("user", "u")
    assert not second.count("user", "u")
    assert second.count("user", "")
    first.give_back()
    first.give_back()
    assert second.count("user", "u")


def test_a_ticket_that_was_given_back_counts_nothing() -> None:
    gate = Gate(GateLimits(max_connections_per_user=1))
    gone, other = entered(gate), entered(gate)
    gone.give_back()
    gone.count("user", "u")
    assert other.count("user", "u")


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_places_are_never_more_than_there_may_be_and_never_lost(moves: list[tuple[int, bool]]) -> None:
    gate = Gate(GateLimits(max_connections_per_key=3))
    held: dict[str, list[Ticket]] = {}
    for name, comes in moves:
        key, tickets = str(name), held.setdefault(str(name), [])
        if comes:
            ticket = gate.enter("192.0.2.1", key, "")
            assert isinstance(ticket, Ticket) is (len(tickets) < 3)
            if isinstance(ticket, Ticket):
                tickets.append(ticket)
        elif tickets:
            tickets.pop().give_back()
    for tickets in held.values():
        for ticket in tickets:
            ticket.give_back()
    assert gate._places == {}


def test_handshakes_of_one_address_come_in_bursts_and_then_at_their_rate() -> None:
    clock = Clock()
    gate = Gate(GateLimits(max_connects_per_second_per_address=1), clock=clock)
    assert [gate.may_connect("192.0.2.1") for _ in range(11)] == [True] * 10 + [False]
    assert gate.may_connect("192.0.2.2")
    clock.now += 1
    assert [gate.may_connect("192.0.2.1") for _ in range(2)] == [True, False]


def test_by_default_nobody_is_counted_or_remembered() -> None:
    gate = Gate(clock=Clock())
    for number in range(100):
        entered(gate, user="u")
        assert gate.may_connect(f"192.0.2.{number}")
    assert gate._places == {}
    assert len(gate._connects) == 0


def test_keys_are_not_kept() -> None:
    gate = Gate(GateLimits(max_connections_per_key=5))
    entered(gate, key="a-secret-key")
    assert "a-secret-key" not in repr(gate._places)
    assert digest("") == ""
