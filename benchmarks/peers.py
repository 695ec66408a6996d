"""Peers for the fan-out measurement: the same number of sockets, rate and frame size, no database behind them.

Run as ``python -m benchmarks.peers NAME PORT CLIENTS RATE COUNT SIZE`` each is a server of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import subprocess
import sys
import time

import psutil
import trio
import trio_websocket
import websockets.asyncio.server

from benchmarks import rig
from walstream.protocol.websocket import frame as websocket_frame

SERVERS = ("websockets.broadcast", "trio-websocket send_message", "a bare socket.send loop")
MARK = '"postgres_changes"'


def measure(name: str, clients: int, rate: int, seconds: int, size: int) -> float:
    """Frames per CPU-second of one peer."""
    port = rig.free_port()
    count = rate * seconds
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", name, str(port), str(clients), str(rate), str(count), str(size)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    sockets = []
    try:
        process.stdout.readline()
        sockets += [rig.connect(port, "/") for _ in range(clients)]
        usage = psutil.Process(process.pid)
        before = sum(usage.cpu_times()[:2])
        rig.read_all(sockets, count)
        return clients * count / (sum(usage.cpu_times()[:2]) - before)
    finally:
        for raw in sockets:
            raw.close()
        process.kill()
        process.wait()


async def _serve_asyncio(port: int, clients: int, rate: int, count: int, text: str) -> None:
    connected: set[websockets.asyncio.server.ServerConnection] = set()

    async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
        connected.add(connection)
        await connection.wait_closed()

    async with websockets.asyncio.server.serve(handler, "127.0.0.1", port, compression=None, ping_interval=None):
        print("ready", flush=True)
        while len(connected) < clients:
            await asyncio.sleep(0.05)
        due = time.monotonic()
        for _ in range(count):
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            websockets.asyncio.server.broadcast(connected, text)
        await asyncio.sleep(60)


async def _serve_trio(port: int, clients: int, rate: int, count: int, text: str) -> None:
    connected: list[trio_websocket.WebSocketConnection] = []

    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        connected.append(await request.accept())
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio_websocket.serve_websocket, handler, "127.0.0.1", port, None)
        print("ready", flush=True)
        while len(connected) < clients:
            await trio.sleep(0.05)
        due = trio.current_time()
        for _ in range(count):
            due += 1 / rate
            await trio.sleep_until(due)
            for connection in connected:
                await connection.send_message(text)
        await trio.sleep(60)


def _serve_bare(port: int, clients: int, rate: int, count: int, text: str) -> None:
    """One ready-made frame, one system call for each client, and nothing else."""
    connected: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        print("ready", flush=True)
        while len(connected) < clients:
            accepted, _ = listener.accept()
            key = accepted.recv(4096).split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
            head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            accepted.sendall(head + b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest))
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setblocking(False)
            connected.append(accepted)
    frame = websocket_frame(text.encode())
    due = time.monotonic()
    for _ in range(count):
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        for each in connected:
            each.send(frame)
    time.sleep(60)


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    port, clients, rate, count, size = map(int, numbers)
    text = MARK + "x" * max(0, size - len(MARK) - 4)
    if name == SERVERS[0]:
        asyncio.run(_serve_asyncio(port, clients, rate, count, text))
    elif name == SERVERS[2]:
        _serve_bare(port, clients, rate, count, text)
    else:
        trio.run(_serve_trio, port, clients, rate, count, text)
