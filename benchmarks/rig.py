"""What every measurement needs: a private PostgreSQL, the daemon as a process, and raw WebSocket clients.

The clients parse as little as they can, so that the load side is never the bottleneck.
"""

from __future__ import annotations

import base64
import json
import os
import random
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jwt
import psutil
import psycopg2

from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.commands.server_binaries import choose_binaries

SECRET = "benchmark-secret-with-at-least-32-characters"
TABLE = """
create table public.bench (
    id bigint generated always as identity primary key,
    room integer not null,
    title text not null,
    amount numeric(12, 2) not null,
    done boolean not null,
    at timestamptz not null default now()
);
grant select on public.bench to anon, authenticated, service_role;
"""


def token(role: str = "service_role", **claims: object) -> str:
    """A token that the daemon of this rig accepts."""
    return jwt.encode({"role": role, "exp": int(time.time()) + 86400, **claims}, SECRET, algorithm="HS256")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A throw-away server with wal2json, without fsync."""
    with tempfile.TemporaryDirectory(prefix="wsb") as directory:
        os.chmod(directory, 0o755)
        server = Cluster(Path(directory) / "pg", choose_binaries(), settings={"fsync": "off", "max_wal_size": "8GB"})
        server.start()
        try:
            yield server
        finally:
            server.close()


class Daemon:
    """``walstream serve`` as a process of its own."""

    def __init__(self, dsn: str, port: int, **settings: str) -> None:
        self.dsn = dsn
        self.port = port
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WALSTREAM_", "PG"))}
        environment |= {
            "WALSTREAM_DATABASE_URL": dsn,
            "WALSTREAM_LISTEN": f"127.0.0.1:{port}",
            "WALSTREAM_JWT_SECRET": SECRET,
            "WALSTREAM_LOG_FORMAT": "json",
            **{f"WALSTREAM_{key.upper()}": value for key, value in settings.items()},
        }
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "walstream", "serve"], env=environment, stdout=self.log, stderr=self.log
        )
        self.usage = psutil.Process(self.process.pid)
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=1) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        self.log.seek(0)
        raise RuntimeError(f"the daemon did not become ready:\n{self.log.read().decode()[-4000:]}")

    def cpu_seconds(self) -> float:
        """User and system time used so far."""
        times = self.usage.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(self.usage.memory_info().rss)

    def pause(self) -> None:
        """Stop the process, so that a backlog builds up in the slot."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, politely at first."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def metric(port: int, name: str) -> float:
    """The value of a metric without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == name)


def free_port() -> int:
    """A TCP port below the ephemeral range that nobody listens on now."""
    for port in random.sample(range(21000, 22000), 1000):  # others may be measuring, too
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 21000 and 22000")


def prepare(server: Cluster, table: str = TABLE) -> str:
    """Apply the schema, make public.bench by ``table`` and subscribe it. Returns the DSN."""
    dsn = server.dsn()
    environment = {**os.environ, "WALSTREAM_DATABASE_URL": dsn}
    subprocess.run([sys.executable, "-m", "walstream", "init"], env=environment, check=True, stdout=subprocess.DEVNULL)
    execute(dsn, table)
    subprocess.run(
        [sys.executable, "-m", "walstream", "subscribe", "public.bench"],
        env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return dsn


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def masked(text: str) -> bytes:
    """A client's text frame (RFC 6455 5.3) with a zero mask, which leaves the payload readable."""
    payload = text.encode()
    length = len(payload)
    head = bytes([0x81])
    if length < 126:
        head += bytes([0x80 | length])
    else:
        head += bytes([0x80 | 126]) + length.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


def connect(port: int, path: str | None = None) -> socket.socket:
    """A blocking WebSocket connection after its handshake."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as WebSocket clients do
    return shake_hands(raw, path)


def shake_hands(raw: socket.socket, path: str | None = None) -> socket.socket:
    """Make a WebSocket connection of a TCP connection, and return it."""
    key = base64.b64encode(os.urandom(16)).decode()
    path = path or f"/realtime/v1/websocket?apikey={token()}&vsn=2.0.0"
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        more = raw.recv(4096)
        if not more:
            raise RuntimeError(f"no handshake: {head!r}")
        head += more
    if b" 101 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"refused: {head!r}")
    return raw


def join(raw: socket.socket, topic: str, items: Sequence[dict[str, object]], ref: str = "1") -> None:
    """Join and wait for "Subscribed to PostgreSQL"."""
    config = {"broadcast": {}, "presence": {"enabled": False}, "postgres_changes": list(items), "private": False}
    raw.sendall(masked(json.dumps([ref, ref, f"realtime:{topic}", "phx_join", {"config": config}])))
    seen = b""
    while b"Subscribed to PostgreSQL" not in seen:
        more = raw.recv(65536)
        if not more or b'"status":"error"' in seen:
            raise RuntimeError(f"join failed: {seen!r}")
        seen += more


def read_all(sockets: list[socket.socket], expected: int, mark: bytes = b'"postgres_changes"') -> int:
    """Read until every socket has had ``expected`` frames with ``mark``. Returns the bytes of all of them."""
    selector = selectors.DefaultSelector()
    seen = dict.fromkeys(sockets, 0)
    tails = dict.fromkeys(sockets, b"")
    for raw in sockets:
        selector.register(raw, selectors.EVENT_READ, raw)
    total, left = 0, len(sockets)
    deadline = time.monotonic() + 120
    while left:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{left} sockets still wait for frames")
        for key, _ in selector.select(1):
            raw = key.data
            data = raw.recv(1 << 20)
            if not data:
                raise RuntimeError("a socket was closed by the server")
            total += len(data)
            joined = tails[raw] + data
            seen[raw] += joined.count(mark)
            tails[raw] = joined[-(len(mark) - 1) :]
            if seen[raw] >= expected:
                selector.unregister(raw)
                left -= 1
    selector.close()
    return total


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print one measurement."""
    print(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()


def median(values: Sequence[float]) -> float:
    """The median, for repeated runs."""
    return statistics.median(values)
