"""Bindings: equal wishes have equal ids, whatever the order in which they name things."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.model import Operation
from walstream.policy import Viewer
from walstream.router.binding import ID_MAX, Binding, Event, first_id, next_id, wire_ids
from walstream.router.client_filter import parse_filter

events: st.SearchStrategy[Event] = st.sampled_from(["INSERT", "UPDATE", "DELETE", "*"])
names = st.sampled_from(["*", "public", "a", "b"])
selects = st.none() | st.lists(st.sampled_from(["id", "name", "at"]), max_size=3).map(tuple)
filters = st.sampled_from(
    [None, "id=eq.1", "id=eq.1,name=eq.a", "name=eq.a,id=eq.1", "or(id.eq.1,id.eq.2)", "id=in.(2,1)"]
)
bindings = st.builds(
    lambda event, schema, table, text, select, truncate, viewer: Binding(
        event, schema, table, text and parse_filter(text), select, truncate, viewer
    ),
    events, names, names, filters, selects, st.booleans(),
    st.sampled_from([None, Viewer("anon", "{}"), Viewer("anon", '{"sub":"1"}'), Viewer("user", "{}")]),
)  # fmt: skip


@given(bindings, bindings)
def test_ids_are_equal_exactly_for_equal_wishes(left: Binding, right: Binding) -> None:
    one, two = left.canonical(), right.canonical()
    assert (first_id(one) == first_id(two)) == (one == two)
    assert 1 <= first_id(one) <= ID_MAX
    assert one.canonical() == one


def test_an_id_is_the_same_in_every_process() -> None:
    plain = Binding("*", "public", "todos").canonical()
    assert first_id(plain) == 1582792961
    filtered = Binding("INSERT", "public", "todos", parse_filter("id=eq.1"), ("id",)).canonical()
    assert first_id(filtered) == 2109641918


@given(st.lists(bindings, max_size=5))
def test_a_client_knows_its_bindings_by_ids_that_do_not_tell_who_looks(wishes: list[Binding]) -> None:
    bare = [msgspec.structs.replace(each, viewer=None).canonical() for each in wishes]
    ids = wire_ids(wishes)
    assert ids == wire_ids(bare)
    assert all((one == two) == (ids[i] == ids[j]) for i, one in enumerate(bare) for j, two in enumerate(bare))
    assert all(first_id(one) == number for one, number in zip(bare, ids, strict=True))


def test_the_order_of_conditions_and_columns_does_not_count() -> None:
    left = Binding("*", "s", "t", parse_filter("a=eq.1,or(b.eq.2,b.eq.3)"), ("x", "y"))
    right = Binding("*", "s", "t", parse_filter("b=in.(3,2),a=eq.1"), ("y", "x", "x"))
    assert left.canonical() == right.canonical()


@pytest.mark.parametrize(
    "other",
    [
        Binding("INSERT", "s", "t"),
        Binding("*", "x", "t"),
        Binding("*", "s", "x"),
        Binding("*", "s", "t", parse_filter("a=eq.1")),
        Binding("*", "s", "t", None, ()),
        Binding("*", "s", "t", viewer=Viewer("r", "{}")),
        Binding("*", "s", "t", truncate=True),
    ],
)
def test_everything_that_a_binding_asks_for_counts(other: Binding) -> None:
    assert first_id(other.canonical()) != first_id(Binding("*", "s", "t").canonical())


def test_the_id_itself_is_no_part_of_the_wish() -> None:
    assert Binding("*", "s", "t", id=7).canonical() == Binding("*", "s", "t").canonical()


@given(st.integers(1, ID_MAX))
def test_the_id_after_a_taken_one_is_in_range_too(taken: int) -> None:
    assert 1 <= next_id(taken) <= ID_MAX
    assert next_id(taken) != taken


def test_the_official_wildcard_never_gets_truncate() -> None:
    every = Binding("*", "s", "t")
    assert [every.wants(operation) for operation in Operation] == [True, True, True, False]
    feed = Binding("*", "s", "t", truncate=True)
    assert all(feed.wants(operation) for operation in Operation)
    assert [Binding("UPDATE", "s", "t").wants(operation) for operation in Operation] == [False, True, False, False]
