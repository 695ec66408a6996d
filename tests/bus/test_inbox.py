"""The incoming side of a node: every envelope once, holes noticed, peers found and lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.bus.envelope import ALONGSIDE, ORDERED, Envelope, Lane
from walstream.bus.inbox import ALONGSIDE_MAX, START_SLACK_MS, WINDOW_MS, Inbox
from walstream.bus.items import Bye, Hello
from walstream.errors import BusError

NOW = 1_000_000_000


def inbox() -> Inbox:
    made = Inbox("me", timeout=15)
    made.back(NOW, 0)
    return made


def envelope(number: int, node: str = "a", lane: Lane = ORDERED, at: int = NOW, *, bye: bool = False) -> Envelope:
    return Envelope(node, lane, number, at, [Bye() if bye else Hello()])


def reason(box: Inbox, given: Envelope, now: int = NOW, tick: float = 0) -> str:
    try:
        box.admit(given, now, tick)
    except BusError as error:
        return error.reason
    return ""


def test_ones_own_envelopes_are_left_out() -> None:
    assert inbox().admit(envelope(1, "me"), NOW, 0) is None


def test_a_node_is_found_once() -> None:
    box = inbox()
    assert box.admit(envelope(1), NOW, 0) == (False, True, False)
    assert box.admit(envelope(2), NOW, 0) == (False, False, False)
    assert box.peers == {"a"}


def test_a_hole_is_a_gap() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    assert box.admit(envelope(3), NOW, 0) == (True, False, False)
    assert box.admit(envelope(4), NOW, 0) == (False, False, False)


def test_a_node_that_speaks_for_long_is_no_gap_for_a_newcomer_who_has_asked_already() -> None:
    assert inbox().admit(envelope(500), NOW, 1) == (False, True, False)


def test_a_node_that_has_spoken_unheard_is_a_gap() -> None:
    assert inbox().admit(envelope(500), NOW, 16) == (True, True, False)


def test_a_new_node_is_no_gap() -> None:
    assert inbox().admit(envelope(1), NOW, 1000) == (False, True, False)


@given(st.lists(st.integers(1, 30), max_size=60))
def test_numbers_are_taken_once_and_rise(numbers: list[int]) -> None:
    box = inbox()
    taken = [number for number in numbers if not reason(box, envelope(number))]
    assert taken == sorted(set(taken))


@given(st.lists(st.integers(1, 30), max_size=60))
def test_numbers_alongside_are_taken_once_in_any_order_without_a_gap_or_a_peer(numbers: list[int]) -> None:
    box = inbox()
    for at, number in enumerate(numbers):
        given = envelope(number, lane=ALONGSIDE)
        if number in numbers[:at]:
            assert reason(box, given) == "replayed"
        else:
            assert box.admit(given, NOW, 0) == (False, False, False)
    assert box.peers == frozenset()


def test_what_is_older_than_the_window_or_from_the_future_is_refused() -> None:
    box = Inbox("me", timeout=15)
    box.back(NOW - 10 * WINDOW_MS, 0)
    assert reason(box, envelope(1, at=NOW - WINDOW_MS - 1)) == "late"
    assert reason(box, envelope(1, at=NOW + WINDOW_MS + 1)) == "late"
    assert reason(box, envelope(1, at=NOW - WINDOW_MS)) == ""


def test_what_was_said_before_this_node_began_to_listen_is_refused() -> None:
    box = inbox()
    assert reason(box, envelope(1, at=NOW - START_SLACK_MS - 1)) == "late"


def test_numbers_alongside_are_remembered_as_long_as_their_time_counts() -> None:
    box = inbox()
    box.admit(envelope(1, lane=ALONGSIDE, at=NOW + WINDOW_MS), NOW, 0)
    box.expired(NOW + 2 * WINDOW_MS, 240)
    assert reason(box, envelope(1, lane=ALONGSIDE, at=NOW + WINDOW_MS), NOW + 2 * WINDOW_MS, 240) == "replayed"
    box.expired(NOW + 2 * WINDOW_MS + 1, 241)
    assert reason(box, envelope(1, lane=ALONGSIDE, at=NOW + WINDOW_MS), NOW + 2 * WINDOW_MS + 1, 241) == "late"


def test_numbers_alongside_are_bounded_and_what_was_forgotten_is_not_taken_again() -> None:
    box = inbox()
    for number in range(1, ALONGSIDE_MAX + 11):
        box.admit(envelope(number, lane=ALONGSIDE), NOW, 0)
    assert [reason(box, envelope(number, lane=ALONGSIDE)) for number in (1, 10, 11)] == ["replayed"] * 3
    assert reason(box, envelope(ALONGSIDE_MAX + 11, lane=ALONGSIDE)) == ""
    assert len(box._nodes["a"].alongside) == ALONGSIDE_MAX


def test_a_goodbye_is_told_once_and_what_was_said_before_it_stays_said() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    assert box.admit(envelope(2, bye=True), NOW, 0) == (False, False, True)
    assert box.peers == frozenset()
    assert reason(box, envelope(1)) == "replayed"
    assert box.expired(NOW, 100) == []


def test_a_goodbye_of_a_stranger_says_nothing() -> None:
    assert inbox().admit(envelope(1, bye=True), NOW, 0) == (False, False, False)


def test_a_silent_node_is_lost_once_and_found_again_with_a_gap() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    assert box.expired(NOW, 15) == []
    assert box.expired(NOW, 15.1) == ["a"]
    assert box.expired(NOW, 16) == []
    assert box.peers == frozenset()
    assert box.admit(envelope(2), NOW, 17) == (True, True, False)  # no hole, but what it said has been forgotten


def test_nobody_is_lost_while_nothing_can_be_heard_and_everybody_has_the_whole_time_afterwards() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    box.away()
    assert box.expired(NOW, 100) == []
    box.back(NOW, 100)
    assert box.expired(NOW, 115) == []
    assert box.expired(NOW, 115.1) == ["a"]


def test_a_hole_over_a_time_away_is_not_told_a_second_time() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    box.away()
    box.back(NOW, 5)
    assert box.admit(envelope(9), NOW, 5) == (False, False, False)
    assert reason(box, envelope(8)) == "replayed"
    assert box.admit(envelope(11), NOW, 5) == (True, False, False)


def test_who_slept_does_not_blame_others() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    box.excuse(100)
    assert box.expired(NOW, 100) == []


def test_a_node_that_is_long_gone_is_forgotten() -> None:
    box = inbox()
    box.admit(envelope(1), NOW, 0)
    box.expired(NOW, 16)
    box.expired(NOW, 1000)
    with pytest.raises(KeyError):
        box._nodes["a"]
