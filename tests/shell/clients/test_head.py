"""Request heads: every bound, hostile input, and heads that trickle in."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.shell.edge_support import UPGRADE, socket_pair
from tests.support import run
from walstream.shell.clients.head import HeadError, parse_head, read_head
from walstream.shell.clients.sockets import Head
from walstream.shell.clients.stream import SocketStream
from walstream.shell.delivery.outbox import Outbox

PLAIN = b"GET /health?a=1&b=%20x&a=2&c HTTP/1.1\r\nHost: example.org\r\nX-Client-Info: me\r\n\r\n"


def reading(sent: bytes, *, end: bool = False) -> Head | None:
    """What comes of these bytes within five (leaping) seconds."""

    async def main() -> Head | None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            theirs.send(sent)
            if end:
                theirs.shutdown(1)
            return await read_head(stream, "192.0.2.1:5", seconds=5)

    return run(main, autojump=True)


def status_of(sent: bytes) -> int:
    with pytest.raises(HeadError) as refused:
        reading(sent)
    return refused.value.status


def test_a_head_is_read_whole_and_what_follows_it_stays_in_the_stream() -> None:
    async def main() -> None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))
            theirs.send(PLAIN + b"body")
            head = await read_head(stream, "192.0.2.1:5", seconds=5)
            assert head == Head(
                method="GET",
                path="/health",
                query=(("a", "1"), ("b", " x"), ("a", "2"), ("c", "")),
                headers=(("host", "example.org"), ("x-client-info", "me")),
                peer="192.0.2.1:5",
                raw=PLAIN,
            )
            assert (head.header("host"), head.header("none")) == ("example.org", None)
            assert (head.parameter("a"), head.parameter("none")) == ("1", None)
            assert await stream.receive_some() == b"body"

    run(main)


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_head_may_come_in_pieces(cut: int) -> None:
    async def main() -> Head | None:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))

            async def send() -> None:
                for start in range(0, len(PLAIN), cut):
                    theirs.send(PLAIN[start : start + cut])
                    await trio.testing.wait_all_tasks_blocked()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                return await read_head(stream, "", seconds=5)
        raise AssertionError

    head = run(main)
    assert head is not None
    assert head.raw == PLAIN


def test_a_head_that_never_ends_is_refused_with_408_whatever_its_pace() -> None:
    async def main() -> float:
        with socket_pair() as (ours, theirs):
            stream = SocketStream(ours, Outbox(ours, 1000, lambda outbox: None))

            async def trickle() -> None:
                while True:
                    theirs.send(b"G")
                    await trio.sleep(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle)
                begun = trio.current_time()
                with pytest.raises(HeadError) as refused:
                    await read_head(stream, "", seconds=5)
                assert refused.value.status == 408
                nursery.cancel_scope.cancel()
                return trio.current_time() - begun
        raise AssertionError

    assert run(main, autojump=True) == pytest.approx(5)


def test_a_connection_that_says_nothing_is_no_request() -> None:
    assert reading(b"") is None


def test_a_connection_that_ends_before_its_head_does_is_no_request() -> None:
    assert reading(b"GET / HT", end=True) is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host (RFC 9112, 3.2)
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 10_000, 414),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 4096, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4096 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: aaaa\r\n" * 2000, 431),
        (b"GET /?" + b"a&" * 101 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
)
def test_unacceptable_heads_are_refused_with_a_status(sent: bytes, status: int) -> None:
    assert status_of(sent) == status


def test_heads_up_to_the_bounds_are_accepted() -> None:
    token = "t" * 9000
    head = reading(f"GET /socket/websocket?apikey={token} HTTP/1.1\r\nX-A: {'a' * 4000}\r\n{UPGRADE}\r\n".encode())
    assert head is not None
    assert head.parameter("apikey") == token
    assert head.is_upgrade


def test_the_absolute_form_that_proxies_send_names_the_same_path() -> None:
    head = parse_head(b"GET http://example.org:80/live?x=1 HTTP/1.1\r\nHost: example.org\r\n\r\n", "")
    assert (head.path, head.query) == ("/live", (("x", "1"),))


def outcome(raw: bytes) -> int:
    """0 for a head, else the status of its refusal; anything else flies."""
    try:
        parse_head(raw, "")
    except HeadError as error:
        return error.status
    return 0


@given(data=st.binary(max_size=300))
def test_hostile_bytes_are_refused_or_parsed_and_nothing_else(data: bytes) -> None:
    assert outcome(b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n") in (0, 400, 431, 501)


@given(target=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=100))
def test_any_target_is_refused_or_parsed_and_nothing_else(target: str) -> None:
    assert outcome(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) in (0, 400)
