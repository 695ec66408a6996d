"""A network that swallows everything without a word, and a process that stands still."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from integration.fixtures.daemon import free_port
from integration.fixtures.postgres import TestDatabase
from tests.contracts.bus_contract import running, said
from walstream.shell.channels import notify_ear, notify_mouth
from walstream.shell.channels.notify_bus import NotifyBus
from walstream.shell.database.postgres import PgConnection, connect

SECRET = "a secret of the cluster"


class Way:
    """A port before the server's unix socket. ``swallow``: what is connected now stays so, and carries nothing."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._swallowed: list[socket.socket] = []
        self._lock = threading.Lock()
        self._ends = False
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def swallow(self) -> int:
        with self._lock:
            keys = [key for key in self._selector.get_map().values() if key.data is not None]
            for key in keys:
                self._selector.unregister(key.fileobj)
                self._swallowed.append(key.data)
        return len(keys) // 2

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for each in self._swallowed:
            each.close()
        self._selector.close()

    def _carry(self) -> None:
        while not self._ends:
            with self._lock:
                for key, _ in self._selector.select(0.01):
                    if key.data is None:
                        self._connect()
                    else:
                        self._pass_on(key)
            time.sleep(0.0005)

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(self._server)
        self._selector.register(client, selectors.EVENT_READ, upstream)
        self._selector.register(upstream, selectors.EVENT_READ, client)

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        source, target = key.fileobj, key.data
        assert isinstance(source, socket.socket)
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(65536)
            target.sendall(data)
        if not data:
            for each in (source, target):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(each)
                each.close()


@pytest.fixture
def way(prepared: TestDatabase) -> Iterator[Way]:
    parameters = dict(part.split("=") for part in prepared.dsn.split())
    made = Way(f"{parameters['host']}/.s.PGSQL.{parameters['port']}")
    yield made
    made.close()


def test_a_network_that_swallows_everything_is_noticed_and_gone_round(
    prepared: TestDatabase, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_ear, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(notify_mouth, "STATEMENT_SECONDS", 1.0)

    def direct(name: str) -> PgConnection:
        return connect(prepared.dsn, application_name=name)

    def around(name: str) -> PgConnection:
        dsn = f"host=127.0.0.1 port={way.port} dbname={prepared.name} user=postgres sslmode=disable gssencmode=disable"
        return connect(dsn, application_name=name)

    async def main() -> None:
        near = NotifyBus(direct, "realtime", "near", SECRET, node_timeout_seconds=6)
        far = NotifyBus(around, "realtime", "far", SECRET, node_timeout_seconds=6)
        async with running(near, far) as (a, b):
            assert way.swallow() == 2
            started = trio.current_time()
            b.bus.publish(said("swallowed, said again"))
            await b.ear.until(lambda: b.ear.gaps == 2)
            assert trio.current_time() - started < 6
            a.bus.publish(said("a"))
            b.bus.publish(said("b"))
            await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["a"])
            await a.ear.until(lambda: a.ear.heard(b.node)[-1:] == ["b"])
            assert (a.node, None) not in b.ear.events
            way.swallow()
            started = trio.current_time()
            await b.stop()
            assert trio.current_time() - started < 1.2

    trio.run(main)


def test_a_process_that_stood_still_does_not_blame_others(prepared: TestDatabase) -> None:
    def open_connection(name: str) -> PgConnection:
        return connect(prepared.dsn, application_name=name)

    async def main() -> None:
        made = [NotifyBus(open_connection, "realtime", name, SECRET, node_timeout_seconds=1) for name in "ab"]
        async with running(*made) as (a, b):
            time.sleep(2.5)  # both of them
            await trio.sleep(0.5)
            a.bus.publish(said("awake"))
            await b.ear.until(lambda: b.ear.heard(a.node) == ["awake"])
            assert (a.node, None) not in b.ear.events
            assert (b.node, None) not in a.ear.events

    trio.run(main)


def test_a_server_that_dies_and_comes_back(fragile: TestDatabase) -> None:
    def open_connection(name: str) -> PgConnection:
        return connect(fragile.dsn, application_name=name)

    async def main() -> None:
        buses = [NotifyBus(open_connection, "realtime", name, SECRET, node_timeout_seconds=6) for name in "ab"]
        async with running(*buses) as (a, b):
            await trio.to_thread.run_sync(fragile.cluster.kill)
            for number in range(30):
                a.bus.publish(said(number))
                await trio.sleep(0.1)
            assert buses[0].dropped > 0
            await trio.to_thread.run_sync(fragile.cluster.start)
            await b.ear.until(lambda: b.ear.gaps >= 2)
            await a.ear.until(lambda: a.ear.gaps >= 2)
            while not b.ear.heard(a.node):
                a.bus.publish(said("after"))
                await trio.sleep(0.1)
            assert set(b.ear.heard(a.node)) == {"after"}
            assert (a.node, None) not in b.ear.events
            a.bus.publish(said("large", 100_000))
            await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["large"])

    trio.run(main)
