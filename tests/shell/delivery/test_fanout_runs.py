"""Runs of INSERTs are routed by a road of their own; it says what the general one says, byte for byte."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.predicate.rows import TABLE
from tests.shell.fanout_support import BEFORE, Rig, Wire, outbox
from walstream.model import Change, Operation, Row
from walstream.shell.delivery import fanout

cells = st.one_of(st.just(b"null"), st.integers().map(lambda n: b"%d" % n), st.just(b'"100 % of %b, %d"'))
rows = st.tuples(cells, cells, cells)
bindings = st.lists(st.sampled_from(["", "n=eq.1"]), min_size=1, max_size=2)
selects = st.sampled_from([None, ("n",), ("t", "n")])


def inserts(given_rows: list[Row]) -> tuple[Change, ...]:
    return tuple(Change(TABLE, Operation.INSERT, row, None, 0, ordinal) for ordinal, row in enumerate(given_rows))


def routed(changes: tuple[Change, ...], topics: int, wanted: list[str], select: tuple[str, ...] | None) -> list[bytes]:
    """What each of the sockets gets."""
    rig = Rig()
    wires = [Wire() for _ in range(topics)]
    for number, wire in enumerate(wires):
        ids = [rig.binding(text, select) for text in wanted]
        rig.fanout.join(outbox(wire), rig.key(*ids, topic=f"realtime:50%b {number}"), BEFORE, rig.ring.next_sequence)
    rig.route(0)  # settles the joins
    sequence, transaction = rig.append(changes)
    rig.fanout.route(sequence, transaction, spilled=False)
    trio.run(rig.fanout.flush)
    return [wire.data for wire in wires]


@given(st.lists(rows, min_size=2, max_size=6), st.integers(1, 6), bindings, selects)
def test_a_run_is_written_as_if_row_by_row(
    given_rows: list[Row], topics: int, wanted: list[str], select: tuple[str, ...] | None
) -> None:
    changes = inserts(given_rows)
    at_once = routed(changes, topics, wanted, select)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "RUN_CHANGES_MIN", 1 << 30)
        one_by_one = routed(changes, topics, wanted, select)
    assert at_once == one_by_one


def test_a_run_takes_the_short_road_where_everybody_gets_all() -> None:
    rig = Rig()
    rig.fanout.join(outbox(Wire()), rig.key(rig.binding()), BEFORE, rig.ring.next_sequence)
    rig.route(0)
    _, transaction = rig.append(inserts([(b"1", b"null", b"true")] * 3))
    assert rig.fanout._route_run(rig.fanout.routing(transaction))


def test_a_row_that_is_too_large_or_has_gaps_goes_the_general_road() -> None:
    rig = Rig()
    rig.fanout._max_record_bytes = 400
    rig.fanout.join(outbox(Wire()), rig.key(rig.binding()), BEFORE, rig.ring.next_sequence)
    rig.route(0)
    for odd in (b'"%b"' % (b"x" * 500), None):
        _, transaction = rig.append(inserts([(b"1", b"null", b"true"), (b"2", odd, b"true")]))
        assert not rig.fanout._route_run(rig.fanout.routing(transaction))
