"""The same workload through wal2json and through pgoutput is the same changes, one by one."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from integration.decoder.reading import Readers, readers
from integration.decoder.samples import SCHEMA
from integration.decoder.workload import TABLES, Workload, batches
from integration.fixtures.postgres import TestDatabase
from tests.decoder.messages import shown
from walstream.model import Begin, Change, Commit, Operation, Row

SEED = int(os.environ.get("DECODER_SEED", "1"))
ROUNDS = 60


def workload(database: TestDatabase) -> Workload:
    database.execute(SCHEMA)
    database.execute(TABLES)
    return Workload(database.connect(), SEED)


def as_seen_late(change: Change) -> tuple[object, ...]:
    """What both must say even where the catalog has moved on: names and values."""
    names = [column.name for column in change.relation.columns]

    def present(row: Row | None) -> dict[str, bytes] | None:
        if row is None:
            return None
        return {name: cell for name, cell in zip(names, row, strict=True) if cell is not None}

    return (
        change.relation.leaf,
        change.relation.name,
        change.operation,
        present(change.new),
        present(change.old),
        change.lsn,
    )


def compare(both: Readers, *, alter: bool) -> list[Change]:
    heard = both.changes()
    left, right = heard["wal2json"], heard["pgoutput"]
    for one, other in zip(left, right, strict=False):
        assert as_seen_late(one) == as_seen_late(other)
        if not alter:
            assert shown(one) == shown(other)
        elif one.operation is Operation.INSERT:
            # Only an insert of wal2json has all columns. Other rows may be read with one of a neighbour in time,
            # which has no value then; keys are not told at all.
            assert one.relation.columns == other.relation.columns
            assert one.new == other.new
        assert one.ordinal == other.ordinal
    assert len(left) == len(right)
    frames = [
        [record for record in reader.records if isinstance(record, Begin | Commit)] for reader in both.all.values()
    ]  # fmt: skip
    assert set(frames[1]) <= set(frames[0])  # only pgoutput leaves out what is empty
    return left


@pytest.mark.parametrize("alter", [False, True])
def test_both_plugins_say_the_same(database: TestDatabase, alter: bool) -> None:
    work = workload(database)
    with readers(database) as both:
        seen: Counter[Operation] = Counter()
        leaves: set[object] = set()
        unknown = 0
        for _ in batches(work, ROUNDS, alter):
            for change in compare(both, alter=alter):
                seen[change.operation] += 1
                leaves.add(change.relation.leaf)
                unknown += None in (change.new or ())
        assert min(seen[operation] for operation in Operation) > 3
        assert {("public", "part_a"), ("public", "part_b")} <= leaves
        assert unknown > 10  # unchanged TOAST
        assert len(work.refused) < work.done
        if not alter:
            assert both.all["wal2json"].asked < 40


def test_both_plugins_say_the_same_when_read_late(database: TestDatabase) -> None:
    """The catalog is ahead of the WAL, as after a pause: values and names are still those of their time."""
    work = workload(database)
    with readers(database) as both:
        for _ in batches(work, ROUNDS, alter=True):
            pass
        heard = both.changes()
    left, right = ([as_seen_late(change) for change in changes] for changes in heard.values())
    assert left == right
    assert len(left) > 200
