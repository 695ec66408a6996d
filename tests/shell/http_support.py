"""Requests to an ASGI application without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from starlette.routing import BaseRoute

from walstream.shell.clients.http_app import HttpRules, make_app
from walstream.shell.health import Health


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def ask(
    routes: Sequence[BaseRoute],
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    rules: HttpRules | None = None,
    address: str = "",
) -> Answer:
    """One request; ``body`` may come in parts. ``address``: the client's."""
    app = make_app(Health(version="1", node="n"), lambda: (b"", "text/plain"), routes, rules)
    path, _, query = target.partition("?")
    parts = [body] if isinstance(body, bytes) else list(body)
    sent: list[Any] = []

    async def receive() -> Any:
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": unquote(path), "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "scheme": "http", "http_version": "1.1", "server": None, "client": None,
        "state": {"address": address},
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }  # fmt: skip
    await app(scope, receive, send)
    found: dict[str, str] = {}
    for name, value in sent[0]["headers"]:
        found[name.decode()] = ", ".join(filter(None, (found.get(name.decode()), value.decode())))
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))
