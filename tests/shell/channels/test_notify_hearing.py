"""What notifications say, without a server: lookups, what is refused, what is told in which order."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.bus_contract import Ear, said
from tests.support import run
from walstream.bus.envelope import Packer, Parcel, encode_item
from walstream.bus.inbox import Inbox
from walstream.bus.items import Bye, Hello, Item, StoredItem
from walstream.bus.seal import NONCE_BYTES, Seal, to_text
from walstream.errors import DatabaseRefused
from walstream.shell.channels.line import Line
from walstream.shell.channels.notify_hearing import MESSAGES_BURST, Hearing
from walstream.telemetry.metrics import Metrics

SEAL = Seal("secret", database="app", schema="realtime")
NOW = 1_700_000_000.0


class Table:
    """``bus_payloads`` as a Line."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.lookups: list[list[str]] = []
        self.is_refused = False

    async def do(self, work: Callable[[Any], Any], *, seconds: float) -> Any:
        await trio.lowlevel.checkpoint()
        if self.is_refused:
            raise DatabaseRefused("no right to it")
        return work(self)

    def cursor(self) -> Table:
        return self

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: object, parameters: tuple[list[str]]) -> None:
        self.lookups.append(parameters[0])

    def fetchall(self) -> list[tuple[str, memoryview]]:
        return [(name, memoryview(self.rows[name])) for name in self.lookups[-1] if name in self.rows]


class Scene:
    """The node "me" hears the node "a"."""

    def __init__(self, seal: Seal | None = SEAL) -> None:
        self.seal = seal
        self.ear = Ear()
        self.table = Table()
        self.metrics = Metrics()
        self.peers: list[str] = []
        inbox = Inbox("me", timeout=15)
        inbox.back(round(NOW * 1000), 0)
        self.hearing = Hearing(
            inbox,
            "realtime",
            now=lambda: NOW,
            found=lambda node: self.peers.append(f"+{node}"),
            lost=lambda node: self.peers.append(f"-{node}"),
            metrics=self.metrics,
        )
        self.hearing.seal = seal
        self.hearing.listener = self.ear
        self.packer = Packer("a", room=1000 if seal else 1 << 40, bytes_max=1 << 30, new_id=lambda: str(uuid.uuid4()))

    def said(self, *items: Item) -> list[str]:
        """As the other node sends them: one payload each."""
        payloads = []
        for item in items:
            encoded = encode_item(item)
            assert encoded is not None
            self.packer.put(encoded)
            payloads += [self._payload(parcel) for parcel in self.packer.take(round(NOW * 1000), bytes_max=1)]
        return payloads

    def _payload(self, parcel: Parcel) -> str:
        if self.seal is None:
            reference = str(uuid.uuid4())
            self.table.rows[reference] = parcel.envelope
            return "r" + reference
        if parcel.stored:
            self.table.rows[parcel.stored] = self.seal.close(parcel.content, bytes(NONCE_BYTES), parcel.stored)
        return "s" + to_text(self.seal.close(parcel.envelope, bytes(NONCE_BYTES)))

    async def hear(self, *payloads: str) -> None:
        await self.hearing.hear(cast(Line, self.table), payloads)

    def refused(self) -> dict[str, int]:
        return {
            sample.labels["reason"]: int(sample.value)
            for metric in self.metrics.bus_refused.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.value
        }


def scene(test: Callable[[Scene], Any], seal: Seal | None = SEAL) -> Scene:
    one = Scene(seal)
    run(test, one, autojump=True)
    return one


def test_a_node_is_found_before_its_items_and_lost_after_them() -> None:
    async def test(one: Scene) -> None:
        await one.hear(*one.said(Hello(), said("x"), Bye()))
        assert one.ear.events == [("a", Hello()), ("a", said("x")), ("a", None)]
        assert one.peers == ["+a", "-a"]

    scene(test)


def test_stored_items_are_looked_up_together_and_keep_their_place() -> None:
    async def test(one: Scene) -> None:
        payloads = one.said(said(1), said(2, 2000), said(3), said(4, 3000))
        await one.hear(*payloads)
        assert one.ear.heard("a") == ["1", "2", "3", "4"]
        assert len(one.table.lookups) == 1
        await one.hear(*payloads)
        assert len(one.table.lookups) == 1  # what was taken before is not looked up
        assert one.refused() == {"replayed": 4}

    scene(test)


def test_stored_items_that_are_not_there_or_not_genuine_are_a_gap() -> None:
    async def test(one: Scene) -> None:
        payloads = one.said(said(1, 2000), said(2, 2000), said(3))
        first, second = one.table.rows
        del one.table.rows[first]
        one.table.rows[second] = one.table.rows[second][::-1]
        await one.hear(*payloads)
        assert one.ear.heard("a") == ["3"]
        assert one.ear.gaps == 2
        assert one.refused() == {"missing": 1, "forged": 1}

    scene(test)


def test_content_under_another_name_is_not_taken() -> None:
    async def test(one: Scene) -> None:
        payloads = one.said(said(1, 2000), said(2, 2000))
        first, second = one.table.rows
        one.table.rows[first], one.table.rows[second] = one.table.rows[second], one.table.rows[first]
        await one.hear(*payloads)
        assert one.ear.heard("a") == []
        assert one.ear.gaps == 2

    scene(test)


def test_a_table_that_may_not_be_read_is_a_gap_and_no_failure() -> None:
    async def test(one: Scene) -> None:
        one.table.is_refused = True
        await one.hear(*one.said(said(1, 2000), said(2)))
        assert one.ear.heard("a") == ["2"]
        assert one.ear.gaps == 1

    scene(test)


def test_without_a_secret_envelopes_come_by_rows_and_a_forged_name_costs_one_lookup() -> None:
    async def test(one: Scene) -> None:
        forged = f"r{uuid.uuid4()}"
        payloads = one.said(said(1), said(2, 5000))
        await one.hear(forged, payloads[0], forged, "r", "rx", "s", "sAAAA")
        await one.hear(forged, payloads[1])
        assert one.ear.heard("a") == ["1", "2"]
        assert sum(lookup.count(forged[1:]) for lookup in one.table.lookups) == 1

    scene(test, None)


def test_with_a_secret_nothing_unsealed_is_looked_up() -> None:
    async def test(one: Scene) -> None:
        reference = str(uuid.uuid4())
        one.table.rows[reference] = b"x"
        await one.hear(f"r{reference}")
        assert one.table.lookups == []
        assert one.refused() == {"forged": 1}

    scene(test)


def test_messages_are_told_together_once_and_bounded() -> None:
    async def test(one: Scene) -> None:
        ids = [str(uuid.UUID(int=number)) for number in range(MESSAGES_BURST + 50)]
        await one.hear(*(f"m{each}" for each in ids), f"m{ids[0]}", "m")
        assert one.ear.events == [("", StoredItem(tuple(ids[:MESSAGES_BURST])))]
        assert one.refused() == {"crowded": 50, "replayed": 1, "malformed": 1}

    scene(test)


@pytest.mark.parametrize("seal", [SEAL, None])
@given(payloads=st.lists(st.text(max_size=50) | st.sampled_from("srm").flatmap(lambda k: st.text().map(k.__add__))))
def test_any_text_is_survived(seal: Seal | None, payloads: list[str]) -> None:
    async def test(one: Scene) -> None:
        await one.hear(*payloads)
        await one.hear(*one.said(said("after")))
        assert one.ear.heard("a") == ["after"]

    scene(test, seal)
