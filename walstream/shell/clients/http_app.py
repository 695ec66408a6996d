"""The HTTP application: health, metrics and the console page; JSON errors and CORS for every answer.

REST routes of other rooms are handed in. How a request gets here is ``http_edge``'s business.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from walstream.shell.health import Health

ALLOWED_HEADERS: Final = (
    "authorization, apikey, x-api-key, content-type, x-client-info, traceparent, tracestate, baggage, prefer"
)
ALLOWED_METHODS: Final = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
PREFLIGHT_SECONDS: Final = 86_400

_ANY_ORIGIN: Final = (b"access-control-allow-origin", b"*")
_ENCODER: Final = msgspec.json.Encoder()
_REQUESTED: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")


def json_response(body: object, status: int = 200) -> Response:
    """``body`` as JSON."""
    return Response(_ENCODER.encode(body), status, media_type="application/json")


def error_response(status: int, error: str, message: str) -> Response:
    """An error as official clients read it: from ``error``, then from ``message``."""
    return json_response({"error": error, "message": message}, status)


def make_app(
    health: Health, metrics_page: Callable[[], tuple[bytes, str]], routes: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """The application. ``metrics_page``: text and content type. ``routes``: those of other rooms, tried first."""

    async def live(_: Request) -> Response:
        status, body = health.live()
        return json_response(body, status)

    async def ready(_: Request) -> Response:
        status, body = health.ready()
        return json_response(body, status)

    async def everything(_: Request) -> Response:
        return json_response(health.health(), health.ready()[0])

    async def alive_in_a_word(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def ping(_: Request) -> Response:
        return json_response({"message": "Success"})

    async def metrics(_: Request) -> Response:
        text, content_type = metrics_page()
        return Response(text, headers={"content-type": content_type})

    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["GET"])

    own = [
        get("/live", live),
        get("/ready", ready),
        get("/readyz", ready),
        get("/health", everything),
        get("/healthz", alive_in_a_word),
        get("/healthcheck", alive_in_a_word),
        get("/api/ping", ping),
        get("/realtime/v1/api/ping", ping),
        get("/metrics", metrics),
        get("/", _console),
        get("/console", _console),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
    return Cors(Starlette(routes=[*routes, *own], exception_handlers=handlers))


class Cors:
    """Answers preflights and lets every origin read: keys travel in headers, never in cookies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            await _preflight(scope)(scope, receive, send)
            return

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _ANY_ORIGIN]
            await send(message)

        await self._app(scope, receive, send_open)


def _preflight(scope: Scope) -> Response:
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"")
    text = asked.decode("latin-1")
    return Response(
        status_code=204,
        headers={
            "access-control-allow-origin": "*",
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": text if _REQUESTED.fullmatch(text) else ALLOWED_HEADERS,
            "access-control-max-age": str(PREFLIGHT_SECONDS),
            "vary": "Access-Control-Request-Headers",
        },
    )


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    response = error_response(error.status_code, error.detail, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _failed(_: Request, __: Exception) -> Response:
    return error_response(500, "Internal Server Error", "the request met a bug; the log has its trace")


def _load_console() -> tuple[bytes, str]:
    page = resources.files(__package__).joinpath("console.html").read_bytes()
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return page, (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_CONSOLE, _CONSOLE_POLICY = _load_console()


async def _console(_: Request) -> Response:
    return Response(
        _CONSOLE,
        media_type="text/html",
        headers={
            "content-security-policy": _CONSOLE_POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-cache",
        },
    )
