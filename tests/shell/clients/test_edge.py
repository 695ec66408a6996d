"""The whole edge on a loopback port: what connections turn into, bounds, overload, and the order of a drain."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.shell.edge_support import UPGRADE, Recorder, masked, read_frame, read_head_text, read_until_closed
from tests.support import run
from walstream.channel.origins import Origins
from walstream.errors import ConfigError
from walstream.shell.clients.edge import Edge, Guards, http_answer, open_listeners
from walstream.shell.clients.gate import Gate, GateLimits
from walstream.shell.clients.http_app import make_app
from walstream.shell.clients.limits import PENDING_MAX, PLAIN_MAX, EdgeLimits, raise_open_files
from walstream.shell.clients.sockets import Admitted, Head, HttpReply, refusal
from walstream.shell.health import Health
from walstream.telemetry.metrics import Metrics

GET = b"GET %b HTTP/1.1\r\nHost: example.org\r\n\r\n"


class Doorman:
    """An ``Admit`` that lets everybody in but who brings the key "bad"."""

    def __init__(self, *, echo: bool = True) -> None:
        self.heads: list[Head] = []
        self.recorders: list[Recorder] = []
        self.echo = echo

    def __call__(self, head: Head) -> Admitted | HttpReply:
        self.heads.append(head)
        if head.parameter("apikey") == "bad":
            return refusal(401, "Token has expired", delay_seconds=2)
        recorder = Recorder(echo=self.echo)
        self.recorders.append(recorder)
        return recorder


class Running:
    """An edge that listens, its parts, and a way to reach it."""

    def __init__(self, edge: Edge, door: Doorman, health: Health, metrics: Metrics, port: int) -> None:
        self.edge = edge
        self.metrics = metrics
        self.door = door
        self.health = health
        self.port = port
        self.ended = trio.Event()

    async def connect(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        try:
            client.connect(("127.0.0.1", self.port))
        except BlockingIOError:
            await trio.lowlevel.wait_writable(client)
        problem = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            client.close()
            raise OSError(problem, os.strerror(problem))
        return client

    async def wait_refused(self) -> None:
        """Until nobody listens any more."""
        while True:
            try:
                (await self.connect()).close()
            except ConnectionRefusedError:
                return
            await trio.testing.wait_all_tasks_blocked()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        with await self.connect() as client:
            client.send(request)
            received = await read_until_closed(client)
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body

    async def open(self, path: str = "/socket/websocket?apikey=good") -> socket.socket:
        client = await self.connect()
        client.send(f"GET {path} HTTP/1.1\r\n{UPGRADE}\r\n".encode())
        assert (await read_head_text(client)).startswith("HTTP/1.1 101 ")
        return client


@asynccontextmanager
async def listening(
    limits: EdgeLimits | None = None, *, echo: bool = True, guards: Guards | None = None
) -> AsyncIterator[Running]:
    door = Doorman(echo=echo)
    health = Health(version="1", node="n")
    metrics = Metrics()
    application = make_app(health, metrics.page)
    edge = Edge(
        "127.0.0.1",
        0,
        limits=limits or EdgeLimits(),
        admit=door,
        application=application,
        health=health,
        metrics=metrics,
        guards=guards,
    )
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            await edge.run(task_status=task_status)
            running.ended.set()

        addresses = await nursery.start(serve)
        running = Running(edge, door, health, metrics, addresses[0][1])
        yield running
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "path",
    [
        "/socket/websocket?apikey=k&vsn=1.0.0",
        "/realtime/v1/websocket?apikey=k&vsn=2.0.0&log_level=info",
        "/socket/websocket/",
    ],
)
def test_both_families_of_paths_lead_to_a_websocket(path: str) -> None:
    async def main() -> None:
        async with listening() as running:
            with await running.open(path) as client:
                client.send(masked(b"hello"))
                assert await read_frame(client) == (1, b"hello")
                head = running.door.heads[0]
                assert head.peer == f"127.0.0.1:{client.getsockname()[1]}"
                assert head.header("host") == "example.org"

    run(main)


def test_plain_requests_and_websockets_share_the_port() -> None:
    async def main() -> None:
        async with listening() as running:
            with await running.open():
                assert await running.ask(GET % b"/live") == (200, b'{"status":"live"}')
            assert (await running.ask(GET % b"/websocket"))[0] == 404

    run(main)


def test_a_plain_request_ends_its_connection_so_an_upgrade_comes_on_a_new_one() -> None:
    """Node's fetch offers to keep the connection, and Node 22's WebSocket would take it over for its upgrade."""

    async def main() -> None:
        async with listening() as running:
            with await running.connect() as client:
                client.send(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
                received = await read_until_closed(client)
                assert b"\r\nconnection: close\r\n" in received.lower()
            with await running.open() as client:
                client.send(masked(b"x"))
                assert await read_frame(client) == (1, b"x")

    run(main)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /socket/websocket HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 400),
        (GET % b"/socket/websocket", 400),
        (b"OPTIONS /realtime/v1/websocket HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        (b"GET /socket/websocket HTTP/1.1\r\n" + UPGRADE.replace("13\r\n", "8\r\n").encode() + b"\r\n", 400),
        (b"GET /a\r\n" + b"x" * 5000 + b"\r\n\r\n", 431),
        (b"garbage\r\n\r\n", 400),
    ],
)
def test_what_is_no_handshake_is_answered_by_http(request_: bytes, status: int) -> None:
    async def main() -> None:
        async with listening() as running:
            answered, body = await running.ask(request_)
            assert answered == status
            assert not body or "error" in json.loads(body)
            assert running.door.heads == []

    run(main)


def test_a_refused_handshake_waits_and_is_answered_in_json() -> None:
    async def main() -> None:
        async with listening() as running:
            begun = trio.current_time()
            request = f"GET /socket/websocket?apikey=bad HTTP/1.1\r\n{UPGRADE}\r\n".encode()
            assert await running.ask(request) == (401, b'{"error":"Token has expired"}')
            assert trio.current_time() - begun >= 2

    run(main, autojump=True)


def test_a_slow_head_is_answered_with_408_and_costs_no_wake_ups_between() -> None:
    async def main() -> None:
        async with listening() as running:
            with await running.connect() as client:
                client.send(b"GET /live HT")
                received = await read_until_closed(client)
                assert received.startswith(b"HTTP/1.1 408 ")

    run(main, autojump=True)


def test_connections_beyond_the_cap_are_refused_and_plain_requests_still_answered() -> None:
    async def main() -> None:
        async with listening(EdgeLimits(max_connections=2)) as running:
            with await running.open() as first, await running.open():
                request = f"GET /socket/websocket HTTP/1.1\r\n{UPGRADE}\r\n".encode()
                status, body = await running.ask(request)
                assert (status, json.loads(body)["error"]) == (429, "Too many connected users")
                assert (await running.ask(GET % b"/live"))[0] == 200
                first.close()
                while len(running.edge.sockets) == 2:
                    await trio.lowlevel.checkpoint()
                with await running.open():
                    assert len(running.edge.sockets) == 2

    run(main)


def test_a_bug_in_the_admission_ends_one_connection_only() -> None:
    async def main() -> None:
        async with listening() as running:
            with await running.open() as client:
                running.door.recorders = None  # type: ignore[assignment]  # the next admission fails on it
                request = f"GET /socket/websocket HTTP/1.1\r\n{UPGRADE}\r\n".encode()
                with await running.connect() as second:
                    second.send(request)
                    assert await read_until_closed(second) == b""
                client.send(masked(b"still here"))
                assert await read_frame(client) == (1, b"still here")

    run(main)


def test_connections_bytes_and_closes_are_counted() -> None:
    async def main() -> None:
        async with listening(EdgeLimits(outbox_bytes=5000)) as running:
            with await running.open() as client, await running.open():
                client.send(masked(b"hello"))
                await read_frame(client)
                page = (await running.ask(GET % b"/metrics"))[1].decode()
                assert "walstream_connections 2.0\n" in page
                assert f"walstream_bytes_out_total {running.edge.sockets.sent_bytes:.1f}\n" in page
                assert running.health.health()["clients"] == 2
                client.send(masked((1000).to_bytes(2, "big"), 8))
                await read_until_closed(client)
                slow = running.door.recorders[1].socket
                assert slow is not None
                while slow.is_open:
                    slow.send(b"x" * 4000)
                slow.abort()
                await running.edge.sockets.wait_empty()
                page = (await running.ask(GET % b"/metrics"))[1].decode()
                assert 'walstream_closes_total{code="1000"} 1.0\n' in page
                assert 'walstream_closes_total{code="1013"} 1.0\n' in page
                assert "walstream_slow_closes_total 1.0\n" in page
                assert "walstream_connections 0.0\n" in page
                assert running.edge.sockets.sent_bytes > 7

    run(main)


# -- draining


def test_drain_says_goodbye_closes_with_1012_and_ends() -> None:
    async def main() -> None:
        async with listening() as running, trio.open_nursery() as nursery:
            with await running.open() as client:
                nursery.start_soon(running.edge.drain)
                assert await read_frame(client) == (1, b"goodbye")
                assert running.health.ready()[0] == 503
                assert await read_frame(client) == (8, (1012).to_bytes(2, "big") + b"Server requested disconnect")
                assert not running.ended.is_set()
                client.send(masked((1012).to_bytes(2, "big"), 8))
                await running.ended.wait()
                assert running.door.recorders[0].events == ["drain", "closed"]
            with pytest.raises(OSError, match=str(errno.ECONNREFUSED)):
                await running.connect()

    run(main)


def test_who_asks_during_a_drain_is_told_and_no_socket_is_opened() -> None:
    async def main() -> None:
        async with listening() as running, trio.open_nursery() as nursery:
            with await running.open() as client:
                nursery.start_soon(running.edge.drain)
                await read_frame(client)
                status, body = await running.ask(GET % b"/ready")
                assert (status, json.loads(body)["status"]) == (503, "draining")
                assert (await running.ask(GET % b"/live"))[0] == 200
                upgrade = f"GET /socket/websocket?apikey=good HTTP/1.1\r\n{UPGRADE}\r\n"
                status, body = await running.ask(upgrade.encode())
                assert (status, json.loads(body)["error"]) == (503, "Server is shutting down")
                assert len(running.edge.sockets) == 1
                client.send(masked((1012).to_bytes(2, "big"), 8))
                await running.ended.wait()

    run(main)


def test_nobody_is_let_in_when_the_last_socket_is_gone() -> None:
    async def main() -> None:
        async with listening() as running, trio.open_nursery() as nursery:
            with await running.open() as client, await running.connect() as slow:
                slow.send(b"GET /live HTTP/1.1\r\nHost: a\r\n")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(running.edge.drain)
                await read_frame(client)
                client.send(masked((1012).to_bytes(2, "big"), 8))
                await running.wait_refused()
                assert not running.ended.is_set()
                slow.send(b"\r\n")
                assert (await read_until_closed(slow)).startswith(b"HTTP/1.1 200 ")
                await running.ended.wait()

    run(main)


def test_drain_waits_for_readers_only_until_its_deadline() -> None:
    async def main() -> None:
        async with listening(EdgeLimits(drain_seconds=3)) as running:
            with await running.open():
                begun = trio.current_time()
                await running.edge.drain()
                await running.ended.wait()
                assert trio.current_time() - begun == pytest.approx(3, abs=0.5)
                assert running.door.recorders[0].events == ["drain", "closed"]

    run(main, autojump=True)


def test_a_second_signal_ends_a_drain_at_once() -> None:
    async def main() -> None:
        async with listening() as running:
            with await running.open():
                begun = trio.current_time()
                with trio.move_on_after(1):
                    await running.edge.drain()
                await running.ended.wait()
                assert trio.current_time() - begun == pytest.approx(1, abs=0.5)

    run(main, autojump=True)


def test_drain_lets_a_request_under_way_finish() -> None:
    async def main() -> None:
        async with listening() as running, trio.open_nursery() as nursery:
            with await running.connect() as client:
                client.send(b"GET /live HTTP/1.1\r\nHost: a\r\n")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(running.edge.drain)
                await trio.testing.wait_all_tasks_blocked()
                client.send(b"\r\n")
                assert (await read_until_closed(client)).startswith(b"HTTP/1.1 200 ")
            await running.ended.wait()

    run(main)


# -- listening


def test_a_taken_port_is_named_with_its_repair() -> None:
    async def main() -> None:
        (taken,) = await open_listeners("127.0.0.1", 0)
        with taken, pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken.getsockname()[1]}.*WALSTREAM"):
            await open_listeners("127.0.0.1", taken.getsockname()[1])

    run(main)


def test_an_address_of_another_machine_is_named_with_its_repair() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0.*an address of this machine"):
            await open_listeners("192.0.2.1", 0)

    run(main)


def test_a_name_with_two_addresses_gets_one_port() -> None:
    async def main() -> None:
        listeners = await open_listeners("localhost", 0)
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        for listener in listeners:
            listener.close()

    run(main)


def test_accepting_pauses_while_descriptors_are_short_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        """A listener whose first answer is an error and whose second one is a connection that is gone."""

        def __init__(self, real: socket.socket) -> None:
            self.real = real
            self.errors = [errno.EMFILE, errno.ECONNABORTED]

        def accept(self) -> tuple[socket.socket, object]:
            if self.errors:
                raise OSError(self.errors.pop(0), "not now")
            return self.real.accept()

        def fileno(self) -> int:
            return self.real.fileno()

        def close(self) -> None:
            self.real.close()

        def getsockname(self) -> tuple[str, int]:
            return self.real.getsockname()  # type: ignore[no-any-return]  # typeshed: Any

    async def short(host: str, port: int) -> list[Short]:
        return [Short(listener) for listener in await open_listeners(host, port)]

    monkeypatch.setattr("walstream.shell.clients.edge.open_listeners", short)

    async def main() -> None:
        async with listening() as running:
            begun = trio.current_time()
            assert (await running.ask(GET % b"/live"))[0] == 200
            assert trio.current_time() - begun >= 0.1

    run(main, autojump=True)


def test_answers_name_their_length_and_the_end_of_the_connection() -> None:
    assert http_answer(HttpReply(429, b"{}", (("x-a", "b"),)), [("vary", "Origin")]) == (
        b"HTTP/1.1 429 Too Many Requests\r\nx-a: b\r\nvary: Origin\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\nconnection: close\r\n\r\n{}"
    )
    assert http_answer(HttpReply(599)).startswith(b"HTTP/1.1 599 \r\n")


def test_the_bound_on_open_files_is_never_lowered() -> None:
    before = raise_open_files(0)
    assert raise_open_files(1) >= before


# -- guards


@asynccontextmanager
async def guarded(
    limits: GateLimits, origins: str = "*", *, edge_limits: EdgeLimits | None = None
) -> AsyncIterator[Running]:
    async with listening(edge_limits, guards=Guards(Gate(limits), Origins(origins))) as running:
        yield running


def handshake(*headers: str) -> bytes:
    return "\r\n".join(["GET /socket/websocket HTTP/1.1", *headers, UPGRADE, ""]).encode()


def refusals(running: Running, reason: str) -> float:
    return running.metrics.registry.get_sample_value("walstream_refusals_total", {"reason": reason}) or 0.0


def test_a_client_behind_a_trusted_proxy_is_known_by_its_own_address() -> None:
    async def main() -> None:
        async with guarded(GateLimits(trusted_proxies="127.0.0.0/8")) as running:
            with await running.connect() as client:
                client.send(handshake("X-Forwarded-For: 6.6.6.6, 203.0.113.7"))
                assert (await read_head_text(client)).startswith("HTTP/1.1 101 ")
            with await running.connect() as client:
                client.send(handshake())
                assert (await read_head_text(client)).startswith("HTTP/1.1 101 ")
            by_proxy, direct = running.door.heads
            assert (by_proxy.peer, by_proxy.address) == ("203.0.113.7", "203.0.113.7")
            assert (direct.peer.partition(":")[0], direct.address) == ("127.0.0.1", "127.0.0.1")

    run(main)


def test_a_stranger_may_not_say_who_it_is() -> None:
    async def main() -> None:
        async with guarded(GateLimits(trusted_proxies="10.0.0.0/8")) as running:
            with await running.connect() as client:
                client.send(handshake("X-Forwarded-For: 203.0.113.7"))
                await read_head_text(client)
            assert running.door.heads[0].address == "127.0.0.1"

    run(main)


def test_an_answer_to_a_refused_handshake_has_headers_for_browsers_and_is_counted() -> None:
    async def main() -> None:
        async with guarded(GateLimits(), "https://app.example.org") as running:
            with await running.connect() as client:
                client.send(b"POST /socket/websocket HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example.org\r\n\r\n")
                head = await read_head_text(client)
            assert "x-content-type-options: nosniff" in head
            assert "access-control-allow-origin: https://app.example.org" in head
            assert refusals(running, "request") == 1

    run(main)


def test_slow_requests_leave_room_for_those_who_ask_whether_the_node_is_well() -> None:
    async def main() -> None:
        async with listening() as running:
            running.edge._plain = PLAIN_MAX
            assert (await running.ask(GET % b"/health"))[0] == 503
            assert (await running.ask(GET % b"/live"))[0] == 200
            assert refusals(running, "busy") == 1

    run(main)


def test_while_places_are_scarce_a_head_has_less_time() -> None:
    async def main() -> None:
        async with listening(EdgeLimits(head_seconds=100)) as running:
            assert running.edge._head_seconds() == 100
            running.edge._pending += PENDING_MAX
            assert running.edge._head_seconds() == 1
            running.edge._pending -= PENDING_MAX

    run(main)


def test_a_flood_of_frames_ends_its_connection() -> None:
    async def main() -> None:
        async with listening(EdgeLimits(max_messages_per_second=1), echo=False) as running:
            with await running.open() as client:
                for _ in range(10):
                    client.send(masked(b"", opcode=10) * 10)  # pongs that nobody asked for
                    await trio.testing.wait_all_tasks_blocked()
                client.send(masked(b"", opcode=10))
                opcode, payload = await read_frame(client)
                assert (opcode, payload) == (8, (1008).to_bytes(2, "big") + b"too many frames per second")
            await trio.testing.wait_all_tasks_blocked()
            assert refusals(running, "frames") == 1

    run(main)
