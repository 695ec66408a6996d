"""A TCP proxy that can be cut: delays, black holes, resets and half-open connections, between any two of us.

It stands in 127.0.0.1 before a unix socket (PostgreSQL) or another port (the daemon), in a thread of its own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from integration.fixtures.daemon import free_port

CHUNK_BYTES = 1 << 16
Target = int | Path
_LINGER_NOT = struct.pack("ii", 1, 0)  # close by reset (socket(7), SO_LINGER)


class _Pair:
    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near = near
        self.far = far
        self.is_half_open = False
        self.scope = trio.CancelScope()


class Proxy:
    """Used as a context manager. ``target``: a port of 127.0.0.1, or the path of a unix socket;
    another one is for connections to come. A function is asked for each connection; None: there is nobody.

    ``refusal``: what a client is answered when there is nobody, before its connection ends. ``delay``: seconds that
    each byte is late. While ``is_hole`` is set nothing passes, and nobody is told.
    """

    def __init__(self, target: Target | Callable[[], Target | None]) -> None:
        self.port = free_port()
        self.refusal = b""
        self.delay = 0.0
        self.is_hole = False
        self.target = target
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), name="proxy")
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._started = threading.Event()

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._do(self._scope.cancel)
        self._thread.join()

    def reset(self) -> None:
        """End all connections now, both ways, by a reset."""

        def cut() -> None:
            for pair in self._pairs:
                for stream in (pair.near, pair.far):
                    with contextlib.suppress(OSError):
                        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
                pair.scope.cancel()

        self._do(cut)

    def half_open(self, is_gone: Callable[[], bool] = lambda: True) -> None:
        """What comes on the connections of now is taken, and vanishes; nobody is told.

        ``is_gone`` is asked for each: the far side ends, or it stays and is treated like the near one.
        """

        def cut() -> None:
            for pair in self._pairs:
                pair.is_half_open = True
                if is_gone():
                    pair.far.socket.close()

        self._do(cut)

    def _do(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def acting() -> None:
            act()
            done.set()

        assert self._token is not None
        self._token.run_sync_soon(acting)
        done.wait(10)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self._started.set()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, near: trio.SocketStream) -> None:
        target = self.target() if callable(self.target) else self.target
        try:
            if target is None:
                raise OSError("nobody is ready")
            if isinstance(target, int):
                far = await trio.open_tcp_stream("127.0.0.1", target)
            else:
                far = await trio.open_unix_socket(target)
        except OSError:
            await self._refuse(near)
            return
        pair = _Pair(near, far)
        self._pairs.add(pair)
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass, pair, near, far)
                    nursery.start_soon(self._pass, pair, far, near)
        finally:
            self._pairs.discard(pair)
            near.socket.close()
            far.socket.close()

    async def _refuse(self, near: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            if self.refusal:
                await near.receive_some(CHUNK_BYTES)
                await near.send_all(self.refusal)
        await near.aclose()

    async def _pass(self, pair: _Pair, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](64)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, pair, receive, sink)
                async with send:
                    while True:
                        while self.is_hole:
                            await trio.sleep(0.02)
                        data = await source.receive_some(CHUNK_BYTES)
                        if not data:
                            break
                        await send.send((trio.current_time() + self.delay, data))
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if pair.is_half_open:
            await trio.sleep_forever()
        pair.scope.cancel()

    async def _deliver(
        self, pair: _Pair, receive: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream
    ) -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            while self.is_hole:
                await trio.sleep(0.02)
            if not pair.is_half_open:
                await sink.send_all(data)
