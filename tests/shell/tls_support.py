"""Certificates of an authority of our own, and a client's side of TLS over a socket pair; no test lives here."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trustme

from tests.shell.edge_support import socket_pair
from walstream.shell.clients.tls_files import make_context
from walstream.shell.delivery.tls import TlsEngine


@functools.cache
def authority() -> trustme.CA:
    """An authority that exists for this run only."""
    return trustme.CA()


def write_certificate(directory: Path, *names: str, ca: trustme.CA | None = None) -> tuple[str, str]:
    """The files of a new certificate and its key."""
    issued = (ca or authority()).issue_cert(*(names or ("localhost", "127.0.0.1")))
    cert, key = directory / "cert.pem", directory / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return str(cert), str(key)


@functools.cache
def server_context() -> ssl.SSLContext:
    """As the daemon makes it."""
    with tempfile.TemporaryDirectory() as directory:
        return make_context(*write_certificate(Path(directory)))


def client_context(ca: trustme.CA | None = None) -> ssl.SSLContext:
    """Of a client that believes the authority."""
    context = ssl.create_default_context()
    (ca or authority()).configure_trust(context)
    return context


class TlsPeer:
    """The client's end of a connection, on a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def step(self) -> bool:
        """Take what is there and a step of the handshake; whether it is done."""
        self.take(1 << 20)
        done = True
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        self.sock.sendall(self.outgoing.read())
        return done

    def take(self, size: int) -> None:
        """Read encrypted bytes that are there, at most ``size``."""
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.sock.recv(size))

    def read(self, size: int = 1 << 20) -> bytes:
        """Take up to ``size`` encrypted bytes, and return all plain ones that they complete."""
        self.take(size)
        parts = []
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while part := self.tls.read(1 << 16):
                parts.append(part)
        return b"".join(parts)


@contextlib.contextmanager
def tls_pair(*, send_buffer: int | None = None) -> Iterator[tuple[socket.socket, TlsEngine, TlsPeer]]:
    """Our socket, its engine and the client, with the handshake done."""
    with socket_pair(send_buffer=send_buffer) as (ours, theirs):
        engine, peer = TlsEngine(ours, server_context()), TlsPeer(theirs)
        done = (False, False)
        while not all(done):
            theirs_done = peer.step()
            with contextlib.suppress(BlockingIOError):
                engine.feed(ours.recv(1 << 16))
            done = (engine.handshake(), theirs_done)
            engine.flush()
        peer.read()
        engine.flush()
        yield ours, engine, peer
