"""The HTTP application: health, metrics and the console page; JSON errors, CORS and security headers for every answer.

REST routes of other rooms are handed in. How a request gets here is ``http_edge``'s business.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from walstream.channel.origins import Origins
from walstream.shell.clients.gate import Gate
from walstream.shell.clients.http_headers import security_headers
from walstream.shell.clients.http_limits import Throttle
from walstream.shell.health import Health
from walstream.telemetry.metrics import Metrics

ALLOWED_HEADERS: Final = (
    "authorization, apikey, x-api-key, content-type, x-client-info, traceparent, tracestate, baggage, prefer"
)
ALLOWED_METHODS: Final = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
PREFLIGHT_SECONDS: Final = 86_400

_ENCODER: Final = msgspec.json.Encoder()
_REQUESTED: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")


def json_response(body: object, status: int = 200) -> Response:
    """``body`` as JSON."""
    return Response(_ENCODER.encode(body), status, media_type="application/json")


def error_response(status: int, error: str, message: str) -> Response:
    """An error as official clients read it: from ``error``, then from ``message``."""
    return json_response({"error": error, "message": message}, status)


class HttpRules(NamedTuple):
    """What the application asks of requests.

    ``metrics_token``: for /metrics and /health, "" for none. ``https``: whether the listener speaks TLS.
    """

    origins: Origins
    gate: Gate
    metrics: Metrics
    metrics_token: str = ""
    https: bool = False


def make_app(
    health: Health,
    metrics_page: Callable[[], tuple[bytes, str]],
    routes: Sequence[BaseRoute] = (),
    rules: HttpRules | None = None,
) -> ASGIApp:
    """The application. ``metrics_page``: text and content type. ``routes``: those of other rooms, tried first."""
    rules = rules or HttpRules(Origins(), Gate(), Metrics())

    async def live(_: Request) -> Response:
        status, body = health.live()
        return json_response(body, status)

    async def ready(_: Request) -> Response:
        status, body = health.ready()
        return json_response(body, status)

    async def everything(request: Request) -> Response:
        _check_token(request, rules)
        return json_response(health.health(), health.ready()[0])

    async def alive_in_a_word(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def ping(_: Request) -> Response:
        return json_response({"message": "Success"})

    async def metrics(request: Request) -> Response:
        _check_token(request, rules)
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
    app = Starlette(routes=[*routes, *own], exception_handlers=handlers)
    return Cors(Throttle(app, rules.gate, rules.metrics), rules)


def _check_token(request: Request, rules: HttpRules) -> None:
    """Raises HTTPException for a request without the metrics token, where there is one."""
    if not rules.metrics_token:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), rules.metrics_token.encode())
    if scheme.lower() != "bearer" or not right:
        rules.metrics.refused("metrics_token")
        detail = "send the metrics token as Authorization: Bearer (WALSTREAM_METRICS_TOKEN)"
        raise HTTPException(401, detail, {"www-authenticate": "Bearer"})


class Cors:
    """Answers preflights, sends foreign pages away, and says in every answer who may read it.

    Keys travel in headers, never in cookies: pages that may connect may read.
    """

    def __init__(self, app: ASGIApp, rules: HttpRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        origins = self._rules.origins
        given = {name: value.decode("latin-1") for name, value in reversed(scope.get("headers", ()))}
        origin, host = given.get(b"origin"), given.get(b"host")
        allow = origins.allow_header(origin, host)

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                has_policy = any(name == b"content-security-policy" for name, _ in headers)
                further = [*allow, *security_headers(https=self._rules.https, has_policy=has_policy)]
                known = {name for name, _ in headers} - {b"vary"}
                headers += [(n.encode(), v.encode("latin-1")) for n, v in further if n.encode() not in known]
                message["headers"] = headers
            await send(message)

        if not origins.allows(origin, host):
            self._rules.metrics.refused("origin")
            detail = "pages of this origin may not connect: add it to WALSTREAM_ALLOWED_ORIGINS"
            await error_response(403, "Origin not allowed", detail)(scope, receive, send_open)
        elif scope["type"] == "http" and scope["method"] == "OPTIONS":
            await _preflight(scope)(scope, receive, send_open)
        else:
            await self._app(scope, receive, send_open)


def _preflight(scope: Scope) -> Response:
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"")
    text = asked.decode("latin-1")
    return Response(
        status_code=204,
        headers={
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
            "cache-control": "no-cache",
        },
    )
