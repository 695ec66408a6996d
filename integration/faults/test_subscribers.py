"""A subscriber that meets what it doesn't understand says so, instead of coming back as though nothing had been."""

from __future__ import annotations

import pytest
import trio
import trio_websocket

from integration.faults.subscribers import Subscriber, Subscribers
from integration.fixtures.node import eventually

NONSENSE = '["1","1","realtime:laboratory","postgres_changes",{"data":{}}]'


def test_what_a_subscriber_does_not_understand_is_its_end() -> None:
    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        connection = await request.accept()
        await connection.get_message()
        await connection.send_message(NONSENSE)
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(trio_websocket.serve_websocket, handler, "127.0.0.1", 0, None)
            url = f"ws://127.0.0.1:{server.port}/socket/websocket"
            subscribers = Subscribers(Subscriber("one", url, resumes=True))
            with pytest.raises(AssertionError, match="a subscriber failed") as caught:
                await trio.to_thread.run_sync(_live, subscribers)
            assert "KeyError" in repr(caught.value.__cause__)
            nursery.cancel_scope.cancel()

    trio.run(main)


def _live(subscribers: Subscribers) -> None:
    with subscribers:
        eventually(lambda: not subscribers._thread.is_alive())
