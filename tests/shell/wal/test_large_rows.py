"""How many copies of a large row are in memory at once on its whole way: as few as its message and one more."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable
from typing import cast
from unittest import mock

import pytest
import trio

from tests.decoder.messages import Table, catalog_of, speaker
from tests.shell.fanout_support import Wire
from tests.shell.wal.test_pipeline_gulps import RealRig
from tests.shell.wal.test_wal_reader import Rig as ReaderRig
from tests.shell.wal.test_wal_reader import Wire as ReaderWire
from tests.shell.wal.test_wal_reader import message
from tests.support import run, watched
from walstream.decoder import DECODERS
from walstream.model import CatalogMiss

SIZE = 2 << 20
ROOM = 0.7
"""Copies' worth of what else is allocated, and of room that is made before it is needed."""

ASCII = "x" * SIZE
LARGE = {
    "ascii": ("text", ASCII),
    "one wide character": ("text", ASCII[4:] + "😀"),
    "wide characters": ("text", "😀" * (SIZE // 4)),
    "escapes": ("text", 'x"' * (SIZE // 3)),
    "hexadecimal": ("bytea", "\\x" + "ab" * (SIZE // 2)),
    "one string": ("jsonb", f'"{ASCII}"'),
    "many members": ("jsonb", "[" + ", ".join(['{"key": "a value"}'] * (SIZE // 26)) + "]"),
}
OIDS = {"text": 25, "bytea": 17, "jsonb": 3802}


class Sieve:
    """A socket that takes everything and keeps the frames' sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def send(self, data: bytes | memoryview) -> int:
        self.sizes.append(len(data))
        return len(data)

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        return self.send(b"".join(buffers))


class LargeRig(RealRig):
    """One table with a column of this type."""

    def __init__(self, plugin: str, type_name: str, *, is_whole: bool) -> None:
        super().__init__(plugin)
        self.table = Table((("id", 20), ("body", OIDS[type_name])), ("id",))
        self.truth = catalog_of(self.table)
        self.says = speaker(plugin)
        self.sieve = Sieve()
        self.wire = cast(Wire, self.sieve)
        if is_whole:
            self.fanout._max_record_bytes = 1 << 30

    async def take_in(self, payloads: Collection[bytes]) -> None:
        for payload in payloads:
            try:
                self.pipeline.receive([bytes(memoryview(payload))], [0])
            except CatalogMiss as miss:
                await self.pipeline.recover(miss.with_traceback(None))

    def row(self, number: int, body: str) -> list[bytes]:
        return self.says.row("I", self.table, {"id": str(number), "body": body})


@pytest.mark.parametrize("plugin", DECODERS)
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "told of"])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("known", [0, 2], ids=["first of its shape", "of a known shape"])
def test_few_copies_of_a_large_row_are_in_memory(plugin: str, is_whole: bool, name: str, known: int) -> None:
    type_name, body = LARGE[name]

    async def main() -> None:
        rig = LargeRig(plugin, type_name, is_whole=is_whole)
        await rig.open()
        rig.listen()
        small = '"small"' if type_name == "jsonb" else "\\x00"
        before = [row for number in range(known) for row in rig.row(number, small)]
        large = [*rig.row(7, body), *rig.row(8, small), rig.says.commit()]
        size = max(len(json.dumps(body, ensure_ascii=False).encode()), *map(len, large))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fanout.run)
            await rig.take_in([rig.says.begin(), *before])
            with watched() as peak:
                await rig.take_in(large)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert (max(rig.sieve.sizes) > SIZE // 2) == is_whole
        assert peak.size < (2 + ROOM) * size, f"{peak.size / size:.1f} copies"

    run(main)


def test_a_message_is_held_by_nothing_but_what_is_handed_over() -> None:
    payload = bytes(300_000)
    rig = ReaderRig(ReaderWire(message(payload)))
    del payload
    held: list[int] = []

    def receive(payloads: list[bytes], starts: list[int]) -> None:
        held.extend(map(sys.getrefcount, payloads))

    with mock.patch.object(rig.base, "receive", receive):
        rig.run()
    assert held == list(map(sys.getrefcount, [bytes(300_000)]))
