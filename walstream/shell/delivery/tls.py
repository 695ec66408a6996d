"""TLS over one plain socket without waiting: what an outbox writes is encrypted here and sent at once.

The handshake and what comes in are ``clients/tls_stream``'s business; certificates are ``clients/tls_files``'.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

from walstream.shell.delivery.outbox import JOIN_BYTES, Outbox, State

WRITE_BYTES: Final = 64 * 1024
"""Plain bytes that are encrypted before the kernel is asked to take them."""


class TlsEngine:
    """One server's side of a TLS connection. Nothing waits; errors of TLS are OSErrors, as those of sockets.

    ``rest``: encrypted bytes that the kernel has not taken yet. While there are some nothing more is encrypted, so they
    are bounded by one write.
    """

    __slots__ = ("_incoming", "_outgoing", "_rest", "_sock", "_tls")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._rest: memoryview | bytes = b""

    @property
    def rest(self) -> int:
        """How many encrypted bytes wait."""
        return len(self._rest)

    def handshake(self) -> bool:
        """Take the next step; whether it is done. Raises ssl.SSLError for a client that does not speak TLS."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._collect()
        return True

    def feed(self, data: bytes) -> None:
        """Encrypted bytes of the client; b"" at their end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def read(self, size: int) -> bytes | None:
        """Plain bytes; None where more has to be fed first, b"" at the end. Raises ssl.SSLError."""
        try:
            return self._tls.read(size)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        finally:
            self._collect()  # answers to what was read, such as new keys

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt and send as much as the kernel takes, and at most one write more. Returns how much that was.

        Raises BlockingIOError, with nothing encrypted, while a rest waits.
        """
        if self._rest:
            self.flush()
            if self._rest:
                raise BlockingIOError(errno.EAGAIN, "encrypted bytes wait")
        taken, size = 0, len(data)
        while taken < size and not self._rest:
            piece = data if size <= WRITE_BYTES else memoryview(data)[taken : taken + WRITE_BYTES]
            taken += self._tls.write(piece)
            self._collect()
            self.flush()
        return taken

    def flush(self) -> None:
        """Send of the rest what the kernel takes. Raises OSError where the connection is gone."""
        while self._rest:
            try:
                sent = self._sock.send(self._rest)
            except BlockingIOError:
                return
            self._rest = memoryview(self._rest)[sent:] if sent < len(self._rest) else b""

    def say_goodbye(self) -> None:
        """Nothing more will be written: tell the client so (close_notify), if it still can be told."""
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        self._collect()
        with contextlib.suppress(OSError):
            self.flush()

    def _collect(self) -> None:
        if self._outgoing.pending:
            self._rest = bytes(self._rest) + self._outgoing.read()


class TlsOutbox(Outbox):
    """An outbox whose socket is written to through TLS: the same promises, with the engine's rest counted as queued.

    ``_queue`` is a list, if an empty one, while a rest waits, so that nothing overtakes it.
    """

    __slots__ = ("_engine", "_held")

    def __init__(
        self,
        sock: socket.socket,
        engine: TlsEngine,
        limit_bytes: int,
        wake: Callable[[Outbox], None],
        on_overflow: Callable[[Outbox], None] | None = None,
    ) -> None:
        super().__init__(sock, limit_bytes, wake, on_overflow)
        self._engine = engine
        self._held = 0  # of the engine's rest, as far as ``queued_bytes`` has it
        self._send = self._send_first

    @property
    def held_bytes(self) -> int:
        """See ``Outbox``."""
        return self._held

    def die(self) -> None:
        """See ``Outbox``."""
        super().die()
        self._held = 0
        self._send = _gone  # and no cycle of references is left

    def answered(self) -> None:
        """The engine may have written by itself, in answer to what it read: send that, and park the rest."""
        if self._engine.rest and not self.parked and self.state is not State.DEAD:
            if self._queue is None:
                self._queue = []
            self._write(self._queue)

    def _send_first(self, chunk: bytes | memoryview) -> int:
        """What ``broadcast`` calls where nothing is queued."""
        taken = self._engine.write(chunk)
        if self._engine.rest:
            self._queue = []
            self._count_rest()
            self._park()
        return taken

    def _count_rest(self) -> None:
        rest = self._engine.rest
        self.queued_bytes += rest - self._held
        self._held = rest

    def _write(self, queue: list[bytes]) -> None:
        try:
            taken = self._write_some(queue)
        except BlockingIOError:
            taken = 0
        except OSError:
            self.die()
            return
        self.sent_bytes += taken
        self.queued_bytes -= taken
        self._count_rest()
        if taken:
            self._drop_taken(queue, taken)
        if not self.queued_bytes:
            self._queue = [] if self.state else None
            self._offset = 0
            self.parked = False
        else:
            self._park()
        if self._progress is not None:
            self._announce_progress(self._progress)

    def _write_some(self, queue: list[bytes]) -> int:
        offset = self._offset
        if not queue:
            self._engine.flush()
            return 0
        if len(queue) == 1:
            return self._engine.write(memoryview(queue[0])[offset:] if offset else queue[0])
        count = size = 0
        while count < len(queue) and size < JOIN_BYTES:
            size += len(queue[count])
            count += 1
        data = b"".join(queue[:count])
        return self._engine.write(memoryview(data)[offset:] if offset else data)

    def _drop_taken(self, queue: list[bytes], taken: int) -> None:
        taken += self._offset
        whole = 0
        while whole < len(queue) and taken >= len(queue[whole]):
            taken -= len(queue[whole])
            whole += 1
        del queue[:whole]
        self._offset = taken


def _gone(_: bytes | memoryview) -> int:
    raise OSError(errno.EPIPE, "the connection is gone")
