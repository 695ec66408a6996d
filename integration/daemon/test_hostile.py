"""Clients that break every rule, byte by byte: they are answered or sent away, and nobody else notices."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
import trio

from integration.daemon.conftest import Node, Start, bearer
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix

HEAD = (
    "GET /realtime/v1/websocket?apikey={key}&vsn=2.0.0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FRAME_MAX = 100_000


@pytest.fixture(scope="module")
def node(start: Start, shared_database: TestDatabase) -> Iterator[Node]:
    environ = {
        "WALSTREAM_MAX_FRAME_BYTES": str(FRAME_MAX),
        "WALSTREAM_MAX_CONNECTIONS": "5",
        "WALSTREAM_HEAD_SECONDS": "2s",
    }
    with start(shared_database, **environ) as running:
        running.table("t")
        yield running
        running.assert_unharmed()


@pytest.fixture(autouse=True)
def everybody_else_is_served(node: Node) -> Iterator[None]:
    eventually(lambda: node.health()["clients"] == 0)
    yield
    eventually(lambda: node.health()["clients"] == 0)

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
            node.database.execute("insert into t select coalesce(max(id), 0) + 1, 'x' from t")
            await client.changes(1)

    trio.run(main)


def head() -> bytes:
    return HEAD.format(key=bearer(), nonce=base64.b64encode(os.urandom(16)).decode()).encode()


def upgrade(connection: socket.socket) -> None:
    connection.sendall(head())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer


def frame(payload: bytes, opcode: int = 1, *, first: int = 0x80, mask: bool = True) -> bytes:
    size = len(payload)
    flag = 0x80 if mask else 0
    if size < 126:
        header = bytes([first | opcode, flag | size])
    elif size < 1 << 16:
        header = bytes([first | opcode, flag | 126]) + size.to_bytes(2, "big")
    else:
        header = bytes([first | opcode, flag | 127]) + size.to_bytes(8, "big")
    return header + (b"\0\0\0\0" if mask else b"") + payload


def close_code(connection: socket.socket) -> int:
    """What the server's close frame says; 0 if it ended the connection without one."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
        while len(data) >= 4:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            if len(data) < start + size:
                break
            if data[0] == 0x88:
                return int.from_bytes(data[start : start + 2], "big")
            data = data[start + size :]
    return 0


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x" * (FRAME_MAX + 1)), 1009),
        (frame(b"", first=0x80)[:1] + b"\xff" + (1 << 62).to_bytes(8, "big") + b"\0" * 200_000, 1009),
        (frame(b"x" * 60_000, first=0) + frame(b"x" * 60_000, opcode=0), 1009),
        (frame(b"hello", mask=False), 1002),
        (frame(b"hello", first=0xC0), 1002),
        (frame(b"hello", opcode=3), 1002),
        (frame(b"x" * 126, opcode=9), 1002),
        (frame(b"hello", opcode=0), 1002),
        (frame(b"\xff\xfe"), 1007),
        (frame(b"\x03"[:1], opcode=8), 1002),
        (frame((1005).to_bytes(2, "big"), opcode=8), 1002),
    ],
)
def test_a_frame_against_the_rules_ends_its_connection(node: Node, sent: bytes, code: int) -> None:
    with node.raw() as connection:
        upgrade(connection)
        connection.sendall(sent)
        assert close_code(connection) == code


NONSENSE = [
    b"", b"{}", b"[]", b"null", b"nonsense", b"[1,2,3,4,5]", b'["1","1","realtime:t","phx_join"]', b"[" * 50_000,
    b'{"topic":"realtime:t","event":"phx_join","payload":{},"ref":"1"}', b'["1","1","realtime:t","phx_join",[]]',
    b'["1","1","realtime:t","phx_join",{"config":7}]',
    b'["1","1","realtime:t","phx_join",{"config":{"postgres_changes":7}}]',
    b'["1","1","realtime:t","phx_join",{"config":{"postgres_changes":[7,null,[],{}]}}]', b'[null,null,"","",null]',
    b'["1","1","realtime:","phx_join",{}]', b'["1","1","nowhere","phx_join",{}]',
    b'["1","1","realtime:\\ud800","phx_join",{}]',
    b'["1","1","realtime:\\u0000","phx_join",{"config":{"postgres_changes":[{"schema":"\\u0000","table":"\\u0000"}]}}]',
    b'["1","1","realtime:t","access_token",{"access_token":7}]', b'["1","1","realtime:t","broadcast",7]',
    b'["1","1","realtime:t","presence",{"event":7}]', b'["1","1","realtime:t","phx_leave",null]',
    b'["1","' + b"9" * 50_000 + b'","phoenix","heartbeat",{}]', b'["1","1","' + b"t" * 50_000 + b'","phx_join",{}]',
    b'["1","1","realtime:t","phx_join",{"config":{"postgres_changes":[{"schema":"\\ud800","table":"t"}]}}]',
    b'["1","1","realtime:t","phx_join",{"config":{"postgres_changes":[{"table":"t","filter":"id=eq.' + b"9" * 20_000
    + b'"}]}}]',
    b'["1","1","realtime:t","phx_join",' + b'{"config":' * 9_000 + b"1" + b"}" * 9_000 + b"]",
    b'["1","1","realtime:t","phx_join",{"config":{"broadcast":{"replay":{"since":' + b"9" * 5000
    + b',"limit":1e400}}}}]',
    b'["1","1","realtime:t","phx_join",{"config":{"private":false,"private":true,"private":7},"config":[],"config":{}}]',
    b"[" + b"9" * 20_000 + b"," + b"-1e99999" + b',"realtime:t","phx_join",{}]',
    b'[1e308,1e309,"phoenix","heartbeat",{}]',
    b'{"topic":"phoenix","topic":"realtime:t","event":"heartbeat","event":"phx_join","payload":{},"ref":'
    + b"9" * 400 + b"}",
    b'["1","1","realtime:t","phx_join",{"config":{"postgres_changes":[{"table":"t","filter":"v=eq.\\ud800"}]}}]',
]  # fmt: skip


def test_nonsense_is_passed_over(node: Node) -> None:
    with node.raw() as connection:
        upgrade(connection)
        for text in NONSENSE:
            connection.sendall(frame(text))
            connection.sendall(frame(text, opcode=2))
        connection.sendall(frame(b'[null,"last","phoenix","heartbeat",{}]'))
        connection.settimeout(10)
        data = b""
        while b'"last"' not in data:
            chunk = connection.recv(65536)
            assert chunk, f"the connection was ended: {data[-200:]!r}"
            data += chunk
        connection.sendall(frame((1000).to_bytes(2, "big"), opcode=8))
        assert close_code(connection) in (0, 1000)


@pytest.mark.parametrize("query", ["", "apikey=", "apikey=nonsense", "apikey=a.b.c", "vsn=9", "apikey=%ff%00"])
def test_a_handshake_without_a_good_key_is_refused(node: Node, query: str) -> None:
    with node.raw() as connection:
        lines = head().decode().split("\r\n")
        lines[0] = f"GET /realtime/v1/websocket?{query} HTTP/1.1"
        connection.sendall("\r\n".join(lines).encode())
        answer = connection.recv(65536)
    assert answer.split(b" ")[1] in (b"400", b"401", b"403"), answer


def test_a_head_of_a_byte_a_second_is_not_waited_for(node: Node) -> None:
    began = time.monotonic()
    with node.raw() as connection:
        connection.settimeout(0.5)
        answer = b""
        for byte in head():
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(1000)
            except TimeoutError:
                assert time.monotonic() - began < 15, "waited for ever"
                continue
            except OSError:
                break
            if answer or answer == b"":
                break
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 "), answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", b"\0" * 1000,
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(node: Node, sent: bytes) -> None:
    with node.raw() as connection:
        connection.settimeout(10)
        try:
            connection.sendall(sent)
            answer = connection.recv(65536)
        except OSError:
            answer = b""  # refused before it was all sent
    assert answer == b"" or answer.split(b" ")[1].startswith((b"4", b"505")), answer


def test_beyond_the_cap_nobody_gets_in_and_afterwards_everybody(node: Node) -> None:
    connections = [socket.create_connection(("127.0.0.1", node.daemon.port), timeout=10) for _ in range(6)]
    try:
        for connection in connections[:5]:
            upgrade(connection)
        connections[5].sendall(head())
        answer = connections[5].recv(65536)
        assert answer.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 429 ")), answer
        status, body = node.daemon.get("/health")
        assert (status, json.loads(body)["clients"]) == (200, 5)
    finally:
        for connection in connections:
            connection.close()


def test_a_connection_that_says_nothing_is_not_waited_for(node: Node) -> None:
    began = time.monotonic()
    with node.raw() as connection:
        assert connection.recv(1) == b""
    assert time.monotonic() - began < 15


def test_compression_is_not_agreed_upon(node: Node) -> None:
    """So there is nothing that could grow when it is unpacked; a frame that claims to be packed breaks the protocol."""
    with node.raw() as connection:
        offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nHost:"
        connection.sendall(head().replace(b"Host:", offer, 1))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-extensions" not in answer.lower()


FLOOD = 100_000
"""Frames; as many as are more than allowed even where the daemon takes hardly more than that in a second."""


@pytest.mark.parametrize(
    "sent",
    [
        frame(b"", first=0) + frame(b"", opcode=0, first=0) * 10_001,
        frame(b"x" * 100, opcode=9) * FLOOD,
        frame(b"", opcode=10) * FLOOD,
        frame(b"") * FLOOD,
    ],
    ids=["fragments", "pings", "pongs", "empty messages"],
)
def test_a_flood_of_frames_ends_its_connection(node: Node, sent: bytes) -> None:
    with node.raw() as connection:
        upgrade(connection)

        def flood() -> None:
            with contextlib.suppress(OSError):  # sent away before all of it is sent
                connection.sendall(sent)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            assert close_code(connection) == 1008
        finally:
            connection.close()
            flooding.join()


def test_a_flood_of_pings_whose_answers_are_not_read_is_not_read_either(node: Node) -> None:
    with node.raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        upgrade(connection)
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                connection.sendall(frame(b"x" * 125, opcode=9))
        assert node.metric("walstream_outbox_bytes") < 1_000_000


def test_many_topics_are_bounded(node: Node) -> None:
    with node.raw() as connection:
        upgrade(connection)
        joins = [frame(b'["%d","%d","realtime:%d","phx_join",{}]' % (n, n, n)) for n in range(100)]
        connection.sendall(b"".join(joins))
        eventually(lambda: node.metric("walstream_channels") == 100)
        connection.sendall(b"".join(frame(b'["a","a","realtime:x%d","phx_join",{}]' % n) for n in range(100)))
        connection.sendall(frame(b'[null,"last","phoenix","heartbeat",{}]'))
        data = b""
        while b'"last"' not in data:
            data += connection.recv(65536)
        assert node.metric("walstream_channels") == 100
        assert b"ChannelRateLimitReached" in data


GARBAGE = b"\0\xff GET / HTTP/1.1\r\n\r\n" * 1000


@pytest.mark.parametrize("after", [GARBAGE, head() + GARBAGE, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100])
def test_one_request_is_answered_and_what_follows_is_thrown_away(node: Node, after: bytes) -> None:
    with node.raw() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n" + after)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def post(node: Node, body: Iterable[bytes], *lines: str) -> bytes:
    """The answer to a broadcast whose body is sent until the daemon has enough of it."""
    with node.raw() as connection:
        start = ["POST /api/broadcast HTTP/1.1", "Host: x", f"apikey: {bearer()}", "content-type: application/json"]
        connection.sendall("\r\n".join([*start, *lines, "", ""]).encode())
        with contextlib.suppress(OSError):
            for piece in body:
                connection.sendall(piece)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def test_a_body_without_end_is_not_read_to_its_end(node: Node) -> None:
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    answer = post(node, (piece for _ in range(1000)), "transfer-encoding: chunked")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]
    answer = post(node, [], "content-length: 99999999999999999999")
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_a_body_that_does_not_come_is_not_waited_for(node: Node) -> None:
    answer = post(node, [b"{"], "content-length: 1000")
    assert answer.startswith(b"HTTP/1.1 408 "), answer[:200]


NESTED = b'{"messages":[{"topic":"a","event":"b","payload":' + b'{"a":' * 200_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000, b'{"messages":' * 100_000, NESTED, NESTED + b"1" + b"}" * 200_000 + b"}]}",
        b'{"messages":[{"topic":' + b"9" * 500_000 + b',"event":"b","payload":{}}]}', b'{"messages":1e999999999}',
        b'{"messages":[' + b"{}," * 100_000 + b"{}]}",
        b'{"messages":[{"topic":"a","topic":7,"event":"b","event":"c","payload":{"n":' + b"9" * 100_000 + b"}}]}",
        b'{"messages":[{"topic":"\\ud800","event":"\\u0000","payload":{}}]}', b"\xff\xfe", b'"\xed\xa0\x80"',
    ],
    ids=range(11),
)  # fmt: skip
def test_a_body_of_nonsense_is_answered(node: Node, body: bytes) -> None:
    answer = post(node, [body], f"content-length: {len(body)}")
    assert answer.split(b" ")[1] in (b"202", b"400", b"422"), answer[:200]
