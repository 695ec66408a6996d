"""Ctrl+C for commands that wait in the driver, which otherwise hears of it only when the server has answered.

For commands of one thread; the daemon cancels through trio.
"""

from __future__ import annotations

import contextlib
import select
import signal
import threading
from collections.abc import Iterator

import psycopg2
from psycopg2 import extensions


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let Ctrl+C end the process on the spot: for a block, such as connecting, that leaves nothing to clean up."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def of_statements() -> Iterator[None]:
    """Let Ctrl+C cancel the running statement on the server, and raise KeyboardInterrupt. The connection is lost."""
    extensions.set_wait_callback(_wait)
    try:
        yield
    finally:
        extensions.set_wait_callback(None)


def _wait(connection: extensions.connection) -> None:
    try:
        while True:
            state = connection.poll()
            if state == extensions.POLL_OK:
                return
            reading = [connection.fileno()] if state == extensions.POLL_READ else []
            writing = [connection.fileno()] if state == extensions.POLL_WRITE else []
            select.select(reading, writing, [])
    except KeyboardInterrupt:
        # Without this the server would go on: with a slot that nobody knows of, for one.
        with contextlib.suppress(psycopg2.Error):
            connection.cancel()
        raise
