"""The HTTP application's paths, statuses and headers, asked without a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support import run
from walstream.shell.clients.http_app import json_response, make_app
from walstream.shell.health import Health


def healthy() -> Health:
    health = Health(version="1.2.3", node="here", clock=lambda: 100.0)
    health.database_up()
    health.reader_is("streaming")
    health.heartbeat_emitted()
    health.heartbeat_received()
    return health


def ask(
    path: str, method: str = "GET", *, health: Health | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""

    async def greet(request: Request) -> Response:
        if request.method == "PUT":
            raise ZeroDivisionError
        return json_response({"topic": request.path_params["topic"]}, 202)

    app = make_app(
        health or healthy(),
        lambda: (b"walstream_up 1\n", "text/plain; version=0.0.4"),
        [Route("/api/broadcast/{topic}", greet, methods=["POST", "PUT"])],
    )
    sent: list[Any] = []

    async def main() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "scheme": "http", "http_version": "1.1", "server": None, "client": None,
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }  # fmt: skip
        try:
            await app(scope, receive, send)
        except ZeroDivisionError:
            sent.append({"raised": True})

    run(main)
    start = sent[0]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body


def test_live_is_live_before_anything_else_is() -> None:
    status, _, body = ask("/live", health=Health(version="1", node="n"))
    assert (status, json.loads(body)) == (200, {"status": "live"})


@pytest.mark.parametrize("path", ["/ready", "/readyz"])
def test_ready_says_why_not(path: str) -> None:
    status, _, body = ask(path, health=Health(version="1", node="n"))
    assert status == 503
    assert json.loads(body)["status"] == "starting"
    status, headers, body = ask(path)
    assert (status, json.loads(body)) == (200, {"status": "ready", "reasons": []})
    assert headers["content-type"] == "application/json"


def test_health_is_the_whole_board() -> None:
    status, _, body = ask("/health")
    assert status == 200
    assert json.loads(body) == healthy().health()
    assert ask("/health", health=Health(version="1", node="n"))[0] == 503


@pytest.mark.parametrize("path", ["/healthcheck", "/healthz"])
def test_the_short_health_paths_answer_in_a_word(path: str) -> None:
    assert ask(path)[::2] == (200, b"ok")


@pytest.mark.parametrize("path", ["/api/ping", "/realtime/v1/api/ping"])
def test_ping_answers_as_clients_of_the_reference_expect(path: str) -> None:
    assert ask(path)[::2] == (200, b'{"message":"Success"}')


def test_metrics_come_with_their_own_content_type() -> None:
    status, headers, body = ask("/metrics")
    assert (status, headers["content-type"], body) == (200, "text/plain; version=0.0.4", b"walstream_up 1\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/api/broadcast", 404), ("DELETE", "/live", 405), ("GET", "/live/x", 404)],
)
def test_errors_are_json_with_error_and_message(method: str, path: str, status: int) -> None:
    answered, headers, body = ask(path, method)
    assert (answered, set(json.loads(body))) == (status, {"error", "message"})
    assert headers["access-control-allow-origin"] == "*"


def test_head_requests_are_answered() -> None:
    assert ask("/live", "HEAD")[0] == 200


def test_routes_of_other_rooms_are_served_under_the_same_rules() -> None:
    status, headers, body = ask("/api/broadcast/room", "POST")
    assert (status, body, headers["access-control-allow-origin"]) == (202, b'{"topic":"room"}', "*")


def test_a_bug_in_a_route_is_answered_with_json_before_it_flies() -> None:
    status, headers, body = ask("/api/broadcast/room", "PUT")
    assert (status, json.loads(body)["error"]) == (500, "Internal Server Error")
    assert headers["access-control-allow-origin"] == "*"


def test_preflights_allow_what_is_asked_and_the_usual_headers_else() -> None:
    status, headers, _ = ask("/api/broadcast", "OPTIONS", headers={"access-control-request-headers": "apikey, x-mine"})
    assert (status, headers["access-control-allow-headers"]) == (204, "apikey, x-mine")
    assert "POST" in headers["access-control-allow-methods"]
    usual = ask("/anything", "OPTIONS")[1]["access-control-allow-headers"]
    assert {"authorization", "apikey", "content-type", "x-client-info", "traceparent", "tracestate", "baggage"} <= set(
        usual.split(", ")
    )
    odd = ask("/anything", "OPTIONS", headers={"access-control-request-headers": "a\nb"})[1]
    assert odd["access-control-allow-headers"] == usual


class Elements(HTMLParser):
    """Ids and outside references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("src", "href", "action") and value:
                self.references.append(value)


@pytest.mark.parametrize("path", ["/", "/console"])
def test_the_console_is_one_page_that_loads_nothing(path: str) -> None:
    status, headers, body = ask(path)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = body.decode()
    found = Elements()
    found.feed(page)
    assert found.references == ["data:,"]
    assert set(re.findall(r'\$\("(\w+)"\)', page)) <= found.ids
    assert "innerHTML" not in page
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
