"""One plain request through hypercorn over a socket pair, and the pin on what is used of its private interface."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest
import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from tests.shell.edge_support import UPGRADE, read_until_closed, socket_pair
from tests.support import freed_at_once, run
from walstream.shell.clients.head import read_head
from walstream.shell.clients.http_edge import Application, HttpServer
from walstream.shell.clients.limits import HTTP_SECONDS, REFUSAL_SECONDS
from walstream.shell.clients.stream import SocketStream
from walstream.shell.delivery.outbox import Drains, Outbox


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"x-test", b"yes"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def whole_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


def ask(application: Application, request: bytes, *, autojump: bool = False, reads: bool = True) -> tuple[bytes, float]:
    """The answer, and how long the connection was served."""

    async def main() -> tuple[bytes, float]:
        with socket_pair(send_buffer=4096) as (ours, theirs):
            async with trio.open_nursery() as nursery:
                drains = Drains()
                await nursery.start(drains.run)
                stream = SocketStream(ours, Outbox(ours, 100_000, drains.wake))
                theirs.send(request)
                head = await read_head(stream, "192.0.2.1:5", seconds=5)
                assert head is not None
                begun = trio.current_time()
                received = b""

                async def read() -> None:
                    nonlocal received
                    received = await read_until_closed(theirs)
                    theirs.close()

                async with trio.open_nursery() as both:
                    if reads:
                        both.start_soon(read)
                    await HttpServer(application).serve(stream, head)
                assert stream.closed
                nursery.cancel_scope.cancel()
                return received, trio.current_time() - begun
        raise AssertionError

    return run(main, autojump=autojump)


def test_hypercorn_is_the_version_whose_inside_is_known() -> None:
    assert version("hypercorn") == "0.18.0"
    assert list(inspect.signature(TCPServer.__init__).parameters) == [
        "self", "app", "config", "context", "state", "stream",
    ]  # fmt: skip
    assert list(inspect.signature(WorkerContext.__init__).parameters) == ["self", "max_requests"]


def test_the_application_sees_the_request_and_the_client_its_answer_and_the_end() -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], scope["method"], scope["path"], scope["query_string"], await whole_body(receive)))
        seen.append(dict(scope["headers"]))
        await answer(send, b"hello")

    request = (
        b"POST /a%20b/c?x=1 HTTP/1.1\r\nHost: example.org\r\nConnection: keep-alive\r\nApikey: k\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )
    received, _ = ask(application, request)
    assert seen[0] == ("http", "POST", "/a b/c", b"x=1", b"body")
    assert seen[1][b"apikey"] == b"k"
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"x-test: yes\r\n" in received
    assert b"connection: close\r\n" in received.lower()
    assert received.endswith(b"\r\n\r\nhello")


def test_a_request_that_is_answered_leaves_nothing_to_the_collector() -> None:
    async def application(_: Any, receive: Any, send: Any) -> None:
        await answer(send, await whole_body(receive))

    with freed_at_once(TCPServer):
        received, _ = ask(application, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
    assert received.endswith(b"body")


def test_chunked_bodies_arrive() -> None:
    bodies: list[bytes] = []

    async def application(_: Any, receive: Any, send: Any) -> None:
        bodies.append(await whole_body(receive))
        await answer(send, b"")

    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ask(application, request)
    assert bodies == [b"abc"]


def test_an_answer_to_a_body_that_nobody_reads_arrives() -> None:
    async def application(_: Any, __: Any, send: Any) -> None:
        await answer(send, b"no", 404)

    received, _ = ask(application, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000)
    assert received.startswith(b"HTTP/1.1 404 ")
    assert received.endswith(b"no")


def test_answers_larger_than_any_buffer_arrive_whole() -> None:
    async def application(_: Any, __: Any, send: Any) -> None:
        await answer(send, b"x" * 1_000_000)

    received, _ = ask(application, b"GET / HTTP/1.0\r\n\r\n")
    assert received.endswith(b"\r\n\r\n" + b"x" * 1_000_000)


@pytest.mark.parametrize(
    "headers",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        UPGRADE.partition("\r\n")[2].encode(),
    ],
)
def test_no_upgrade_ever_reaches_hypercorn(headers: bytes) -> None:
    kinds: list[str] = []

    async def application(scope: Any, __: Any, send: Any) -> None:
        kinds.append(scope["type"])
        await answer(send, b"plain")

    received, _ = ask(application, b"GET / HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
    assert kinds == ["http"]
    assert received.startswith(b"HTTP/1.1 200 ")


def test_a_second_request_on_the_connection_is_not_answered() -> None:
    async def application(_: Any, __: Any, send: Any) -> None:
        await answer(send, b"once")

    received, _ = ask(application, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert received.count(b"HTTP/1.1 ") == 1


def test_an_application_that_fails_does_not_raise_here() -> None:
    async def application(_: Any, __: Any, ___: Any) -> None:
        raise ZeroDivisionError

    received, _ = ask(application, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 500 ")


def test_a_request_that_takes_too_long_is_ended() -> None:
    async def application(_: Any, __: Any, ___: Any) -> None:
        await trio.sleep_forever()

    received, seconds = ask(application, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", autojump=True)
    assert received == b""
    assert seconds == pytest.approx(HTTP_SECONDS)


def test_a_client_that_does_not_read_its_answer_is_left() -> None:
    async def application(_: Any, __: Any, send: Any) -> None:
        await answer(send, b"x" * 1_000_000)

    _, seconds = ask(application, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", autojump=True, reads=False)
    assert HTTP_SECONDS <= seconds <= 2 * HTTP_SECONDS + REFUSAL_SECONDS
