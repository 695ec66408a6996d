"""However the reader cuts what comes: the same transactions in the ring, and the same bytes for clients."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoder.messages import Speaker, Table, catalog_of, shown, speaker
from tests.shell.wal.test_pipeline import Rig, insert, planned, scene
from tests.support import run
from walstream.capture.plan import Plan, subscription_row
from walstream.decoder import DECODERS, make
from walstream.errors import DecodeError
from walstream.model import Begin, CatalogMiss, Commit, Record, RelationInfo, TypeInfo

COLUMNS = (("id", 20), ("body", 25), ("at", 1184))
TABLES = {
    "t": Table(COLUMNS, ("id",)),
    "u": Table(COLUMNS, ("id",), name="u", oid=2),
    "filtered": Table(COLUMNS, ("id",), name="filtered", oid=3),
    "unwanted": Table(COLUMNS, ("id",), schema="elsewhere", name="t", oid=4),
}
PLAN = Plan(
    [
        *[subscription_row(name, f"public.{name}", ["*"]) for name in "tu"],
        subscription_row("filtered", "public.filtered", ["*"], "id > 3"),
    ],
    own_schema="realtime",
)

Step = tuple[str, str, int]
"""Action, table, and how often."""

steps = st.tuples(st.sampled_from("IIIUDT"), st.sampled_from(sorted(TABLES)), st.integers(1, 6))
transactions = st.lists(st.lists(steps, max_size=5), min_size=1, max_size=5)


class Outcome(NamedTuple):
    """What became of messages."""

    ring: list[tuple[Any, ...]]
    sent: bytes
    failed: bool


class RealRig(Rig):
    """A pipeline with a real decoder, and a catalog that has to be asked for everything."""

    def __init__(self, plugin: str) -> None:
        super().__init__()
        self.truth = catalog_of(*TABLES.values())
        self.catalog.relations.clear()
        self.catalog.types.clear()
        self.plan = PLAN
        self.decoder: Any = make(plugin, self.catalog, wanted=self.pipeline._wanted)

    def _load_relations(self, _: object, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
        known: dict[tuple[str, str], RelationInfo | None] = self.truth.relations
        return {name: known.get(name) for name in names}

    def _load_types(self, _: object, oids: Collection[int]) -> dict[int, TypeInfo | None]:
        return {oid: self.truth.types.get(oid) for oid in oids}

    async def take(self, payloads: list[bytes], sizes: list[int]) -> Outcome:
        """Hand these over in gulps of such sizes, the last one for all the rest."""
        await self.open()
        self.listen()
        failed = False
        at = 0
        try:
            for size in [*sizes, len(payloads)]:
                gulp = payloads[at : at + size]
                try:
                    self.pipeline.receive(gulp, [*range(at, at + len(gulp))])
                except CatalogMiss as miss:
                    await self.pipeline.recover(miss)
                at += size
        except DecodeError:
            failed = True
        await self.pipeline.flush()
        ring = [
            (each.xid, each.commit_lsn, [shown(change) for change in each.changes])
            for number in range(self.ring.next_sequence)
            if (each := self.ring.at(number)) is not None
        ]
        return Outcome(ring, self.wire.data, failed)


def messages(plugin: str, work: list[list[Step]]) -> list[bytes]:
    says = speaker(plugin)
    payloads = []
    numbers = itertools.count()
    for xid, each in enumerate(work, 9):  # of one digit, and then of two: heads differ in length
        payloads.append(says.begin(xid))
        for action, name, count in each:
            for number in itertools.islice(numbers, count):
                payloads += row(says, action, TABLES[name], number)
        payloads.append(says.commit(xid << 8))
    return payloads


def row(says: Speaker, action: str, table: Table, number: int) -> list[bytes]:
    key = {"id": str(number)}
    new = key | {"body": "é" if number % 5 == 4 else "b", "at": f"2026-01-0{number % 2 + 1} 00:00:00+00"}
    if action == "T":
        return says.truncate(table)
    return says.row(action, table, None if action == "D" else new, None if action == "I" else key)


def outcome(plugin: str, payloads: list[bytes], sizes: list[int]) -> Outcome:
    async def main() -> Outcome:
        return await RealRig(plugin).take(payloads, sizes)

    return run(main, autojump=True)


@pytest.mark.parametrize("plugin", DECODERS)
@given(work=transactions, sizes=st.lists(st.integers(1, 20), max_size=10), broken=st.none() | st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_any_cut_says_what_single_messages_say(
    plugin: str, work: list[list[Step]], sizes: list[int], broken: int | None
) -> None:
    payloads = messages(plugin, work)
    if broken is not None and broken < len(payloads):
        payloads[broken] = payloads[broken][:-3]
    alone = outcome(plugin, payloads, [1] * len(payloads))
    assert outcome(plugin, payloads, sizes) == alone
    assert broken is not None or (not alone.failed and len(alone.ring) <= len(work))


def test_a_plan_is_obeyed_by_what_follows_in_the_same_gulp() -> None:
    async def main(rig: Rig) -> None:
        one: list[Record | CatalogMiss] = [Begin(70, 0), planned("public.things"), insert(), Commit(700)]
        two: list[Record | CatalogMiss] = [Begin(71, 0), insert(1), insert(2), insert(3), Commit(710)]
        await rig.feed(*two[:-1], Commit(690), *one, *two)
        assert rig.commits == [710] * 3

    scene(main)


def test_what_was_handed_over_and_not_taken_is_forgotten_with_its_stream() -> None:
    async def main(rig: Rig) -> None:
        rig.records = [Begin(70, 0), insert(1), CatalogMiss(relations=[("public", "new")]), insert(2), Commit(700)]
        with pytest.raises(CatalogMiss):
            rig.pipeline.receive([b"-0", b"I1", b"I2", b"I3", b"-4"], [0] * 5)
        await rig.open()
        rig.records.clear()
        await rig.transaction(insert(1), insert(2), insert(3))
        assert rig.ordinals == [0, 1, 2]

    scene(main, "public.things")
