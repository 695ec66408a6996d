"""REST requests against their rates, by the key that they bring and by their client's address (ASGI).

Whether the key is good is found out afterwards, by the routes; health, metrics and the console are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from walstream.channel.address import counted_as
from walstream.channel.handshake import presented_key
from walstream.channel.rate import Bucket
from walstream.shell.clients.gate import Gate, digest
from walstream.shell.clients.head import query_pairs
from walstream.telemetry.metrics import Metrics

PATH: Final = "/api/"
_TOO_MANY: Final = msgspec.json.encode({"message": "Too many requests", "error": "Too many requests"})

Raw = list[tuple[bytes, bytes]]


class Throttle:
    """Counts requests below ``/api/`` and answers 429 to those above a rate."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or PATH not in scope["path"] or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        now = self._gate.now()
        told: Raw = []
        for kind, name in self._names(scope):
            buckets = self._gate.requests[kind]
            bucket = buckets.of(name, now) if name else None
            if bucket is None:
                continue
            taken = bucket.take(now) is not None
            if kind == "key" or not taken:
                told = _headers(bucket, buckets.rate)
            if not taken:
                self._metrics.refused(f"{kind}_requests")
                seconds = max(1, math.ceil(bucket.wait(now)))
                await _refuse(send, [*told, (b"retry-after", str(seconds).encode())])
                return

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        await self._app(scope, receive, send_told)

    def _names(self, scope: Scope) -> Iterable[tuple[Literal["address", "key"], str]]:
        yield "address", counted_as(str(scope.get("state", {}).get("address", "")))
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        yield "key", digest(presented_key(query_pairs(scope["query_string"].decode("latin-1")), headers))


def _headers(bucket: Bucket, rate: float) -> Raw:
    """As the reference server tells its rates: the average of what was asked lately, the bound, what is left."""
    burst = bucket.burst
    rolling = round((burst - bucket.left) / max(1.0, burst / rate))
    return [
        (b"x-rate-rolling", str(max(0, rolling)).encode()),
        (b"x-rate-limit", str(round(rate)).encode()),
        (b"x-rate-limit-remaining", str(bucket.left).encode()),
    ]


async def _refuse(send: Send, headers: Raw) -> None:
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(_TOO_MANY)).encode()), *headers]
    await send({"type": "http.response.start", "status": 429, "headers": start})
    await send({"type": "http.response.body", "body": _TOO_MANY})
