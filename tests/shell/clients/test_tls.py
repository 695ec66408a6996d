"""The listener's certificate files, and the stream through TLS: handshake, input, the end."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from structlog.testing import capture_logs

from tests.shell.tls_support import client_context, server_context, write_certificate
from tests.support import run
from walstream.errors import ConfigError
from walstream.shell.clients.tls_files import TlsFiles, make_context
from walstream.shell.clients.tls_stream import TlsStream
from walstream.shell.delivery.outbox import Drains
from walstream.shell.delivery.tls import TlsEngine, TlsOutbox


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_context_is_modern() -> None:
    context = server_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    names = [str(cipher["name"]) for cipher in context.get_ciphers()]
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names), names


def test_a_certificate_is_read_again_when_its_file_has_changed_and_not_before(tmp_path: Path) -> None:
    clock = Clock()
    files = TlsFiles(*write_certificate(tmp_path), clock=clock)
    first = files.context()
    clock.now += 5
    assert files.context() is first
    write_certificate(tmp_path)
    assert files.context() is first, "not looked at again so soon"
    clock.now += 1
    assert files.context() is not first


def test_a_certificate_that_became_unusable_is_told_once_and_the_old_one_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    cert, key = write_certificate(tmp_path)
    files = TlsFiles(cert, key, clock=clock)
    first = files.context()
    os.remove(key)
    with capture_logs() as lines:
        for _ in range(3):
            clock.now += 5
            assert files.context() is first
    assert [line["event"] for line in lines] == ["certificate.refused"]
    write_certificate(tmp_path)
    files.reload()
    assert files.context() is not first


def test_what_is_no_certificate_is_an_error_with_a_repair(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, foreign = write_certificate(other, ca=trustme.CA())
    for pair in ((cert, cert), (cert, foreign), (cert, "/nowhere"), (key, cert)):
        with pytest.raises(ConfigError, match="tls_cert, tls_key") as caught:
            make_context(*pair)
        assert "PEM" in caught.value.repair


def test_a_stream_carries_bytes_both_ways_and_its_end() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        async with trio.open_nursery() as nursery:
            drains = Drains()
            await nursery.start(drains.run)
            engine = TlsEngine(ours, server_context())
            stream = TlsStream(ours, engine, TlsOutbox(ours, engine, 1 << 30, drains.wake))
            client = trio.SSLStream(
                trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), client_context(), server_hostname="localhost"
            )
            async with trio.open_nursery() as hands:
                hands.start_soon(stream.handshake, 5)
                hands.start_soon(client.do_handshake)
            await client.send_all(b"there")
            assert await stream.receive_some(3) == b"the"
            stream.unread(b"!")
            assert await stream.receive_some(10) == b"!"
            assert await stream.receive_some(10) == b"re"
            big = bytes(range(256)) * 8000
            received = bytearray()
            async with trio.open_nursery() as both:
                both.start_soon(stream.send_all, big)
                while len(received) < len(big):
                    received += await client.receive_some()
            assert received == big
            async with trio.open_nursery() as both:
                both.start_soon(stream.linger, 5)
                assert await client.receive_some() == b""
                await client.aclose()
            assert stream.closed
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b""])
def test_who_speaks_no_tls_fails_and_who_says_nothing_is_too_slow(sent: bytes) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            engine = TlsEngine(ours, server_context())
            stream = TlsStream(ours, engine, TlsOutbox(ours, engine, 1000, lambda _: None))
            theirs.sendall(sent)
            with pytest.raises(ssl.SSLError if sent else trio.TooSlowError):
                await stream.handshake(5)

    run(main, autojump=True)


def test_a_reset_in_a_handshake_is_a_broken_stream() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            engine = TlsEngine(ours, server_context())
            stream = TlsStream(ours, engine, TlsOutbox(ours, engine, 1000, lambda _: None))
            theirs.close()
            with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
                await stream.handshake(5)

    run(main)
