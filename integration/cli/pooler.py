"""Somebody between client and server who keeps the server's sessions to himself, as poolers do.

Passes everything on but the process id of the backend, of which a pooler tells its own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from integration.fixtures.daemon import free_port

_KEY = b"K\x00\x00\x00\x0c"  # PostgreSQL 17, 53.7 BackendKeyData


@contextlib.contextmanager
def pooler(server: str) -> Iterator[int]:
    """Listen before the server's unix socket; the port. Ends with its last connection."""
    listener = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(server)
                threads.append(threading.Thread(target=_copy, args=(client, upstream, False)))
                threads.append(threading.Thread(target=_copy, args=(upstream, client, True)))
                for thread in threads[-2:]:
                    thread.start()

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


def _copy(source: socket.socket, target: socket.socket, from_server: bool) -> None:
    told = not from_server
    with source, contextlib.suppress(OSError):
        while data := source.recv(65536):
            at = data.find(_KEY)
            if not told and at >= 0:
                (pid,) = struct.unpack_from("!i", data, at + 5)
                data = data[: at + 5] + struct.pack("!i", pid + 1) + data[at + 9 :]
                told = True
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
