"""The wall clock of one of two nodes jumps by an hour: tokens go by it, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from integration.faults.shifted_clock import VARIABLE
from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.node import Node
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix

HOUR = 3600
HALL = "realtime:hall"
ITEM = {"event": "*", "schema": "public", "table": "t"}


class Jumping:
    """A node whose clock jumps."""

    def __init__(self, daemon: Daemon, shift: Path) -> None:
        self.daemon = daemon
        self._shift = shift

    def jump(self, seconds: int) -> None:
        """By so much is its clock wrong from now on."""
        written = self._shift.with_suffix(".new")
        written.write_text(str(seconds), encoding="ascii")
        written.replace(self._shift)


@pytest.fixture
def jumping(prepared: TestDatabase, tmp_path: Path) -> Iterator[Jumping]:
    shift = tmp_path / "shift"
    shift.write_text("0", encoding="ascii")
    environ = {VARIABLE: str(shift), "WALSTREAM_HEARTBEAT_SECONDS": "1s"}
    daemon = Daemon(prepared.dsn, tmp_path, environ)
    daemon.command[-2:] = ["integration.faults.shifted_clock"]
    try:
        daemon.start()
        yield Jumping(daemon, shift)
    finally:
        daemon.kill()


async def meet(one: PhoenixClient, two: PhoenixClient, word: str) -> None:
    """Each hears the other; only the first words may be lost, before the nodes know of each other."""
    for speaker, listener in ((one, two), (two, one)):
        with trio.fail_after(30):
            while True:
                payload = {"type": "broadcast", "event": "e", "payload": {"word": word}}
                await speaker.push(HALL, "broadcast", payload, join_ref="1")
                with trio.move_on_after(1):
                    while (await listener.next("broadcast", topic=HALL)).payload["payload"]["word"] != word:
                        pass
                    break


def test_an_hour_forwards_and_back_ends_tokens_and_nothing_else(
    jumping: Jumping, prepared: TestDatabase, tmp_path: Path
) -> None:
    node = Node(prepared, jumping.daemon)
    node.table("t")

    async def main(other: Daemon) -> None:
        url = jumping.daemon.websocket_url
        async with (
            phoenix(url, apikey=token(seconds=5 * HOUR)) as lasting,
            phoenix(url, apikey=token(seconds=HOUR / 2)) as short,
            phoenix(other.websocket_url, apikey=token(seconds=5 * HOUR)) as elsewhere,
        ):
            await lasting.join(HALL, changes=[ITEM])
            await lasting.next("system", topic=HALL)
            await short.join("realtime:short")
            await elsewhere.join(HALL)
            await meet(lasting, elsewhere, "before")
            for number, seconds in enumerate((HOUR, -HOUR, 0)):
                jumping.jump(seconds)
                if not number:
                    assert "expired" in (await short.next("system", topic="realtime:short")).payload["message"]
                prepared.execute("insert into t values (%s)", (number,))
                assert (await lasting.changes(1))[0]["record"]["id"] == number
                await meet(lasting, elsewhere, f"after {seconds}")
                async with phoenix(url, apikey=token(seconds=2 * HOUR)) as late:
                    await late.join("realtime:late")
        assert node.health()["status"] == "ready"
        node.assert_unharmed()

    with running_daemon(prepared.dsn, tmp_path) as other:
        trio.run(main, other)
