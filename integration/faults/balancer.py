"""A load balancer, as small as one can be: it asks each daemon for ``/ready`` and sends connections to one that is.

Connections that are open stay where they are. That is what haproxy and others do with an HTTP check, unless told else.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Sequence
from functools import partial

from integration.faults.proxy import Proxy
from integration.fixtures.beside import Beside
from integration.fixtures.daemon import Daemon

CHECK_SECONDS = 0.25
ANSWER_SECONDS = 1.0


class Balancer(Proxy):
    """Used as a context manager. ``ready``: the ports of the daemons that said so when they were last asked."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        super().__init__(self._choose)
        self.refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self.ready: frozenset[int] = frozenset()
        self._ports = [daemon.port for daemon in daemons]
        self._lock = threading.Lock()
        self._askers = Beside(*(partial(self._ask, port) for port in self._ports))

    def __enter__(self) -> Balancer:
        super().__enter__()
        self._askers.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._askers.__exit__(*exception)
        super().__exit__(*exception)

    def _choose(self) -> int | None:
        return next((port for port in self._ports if port in self.ready), None)

    def _ask(self, port: int) -> None:
        while not self._askers.over.wait(CHECK_SECONDS):
            is_ready = _is_ready(port)
            with self._lock:
                self.ready = self.ready | {port} if is_ready else self.ready - {port}


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
