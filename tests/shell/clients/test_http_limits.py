"""REST requests above their rates, foreign pages, the metrics token, and headers for browsers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.shell.http_support import Answer, ask
from tests.support import run
from walstream.channel.origins import Origins
from walstream.shell.clients.gate import Gate, GateLimits
from walstream.shell.clients.http_app import HttpRules
from walstream.telemetry.metrics import Metrics

PATH = "/realtime/v1/api/broadcast"


async def accept(_: Request) -> Response:
    return Response(status_code=202)


ROUTES = [Route(PATH, accept, methods=["POST"])]


def rules(
    limits: GateLimits | None = None, *, origins: str = "*", metrics_token: str = "", https: bool = False
) -> HttpRules:
    return HttpRules(Origins(origins), Gate(limits, clock=lambda: 100.0), Metrics(), metrics_token, https)


def count(rules: HttpRules, reason: str) -> float:
    return rules.metrics.registry.get_sample_value("walstream_refusals_total", {"reason": reason}) or 0.0


def get(
    rules: HttpRules, target: str, headers: Mapping[str, str] | None = None, method: str = "GET", address: str = ""
) -> Answer:
    return run(lambda: ask(ROUTES, method, target, b"", headers, rules=rules, address=address))


def post(rules: HttpRules, headers: Mapping[str, str] | None = None, address: str = "192.0.2.1") -> Answer:
    return get(rules, PATH, headers, "POST", address)


def test_requests_above_the_rate_of_their_key_are_refused_with_the_time_to_wait() -> None:
    asked = rules(GateLimits(max_requests_per_second_per_key=0.5))
    for left in range(4, -1, -1):
        answer = post(asked, {"apikey": "k"})
        assert (answer.status, answer.headers["x-rate-limit-remaining"]) == (202, str(left))
    answer = post(asked, {"apikey": "k"})
    assert (answer.status, answer.json["message"]) == (429, "Too many requests")
    assert answer.headers["retry-after"] == "2"
    assert {name: answer.headers[f"x-rate-{name}"] for name in ("limit-remaining", "rolling")} == {
        "limit-remaining": "0", "rolling": "0",
    }  # fmt: skip
    assert answer.headers["access-control-allow-origin"] == "*"
    assert post(asked, {"apikey": "other"}).status == 202
    assert post(asked, {"authorization": "Bearer k"}).status == 429
    assert count(asked, "key_requests") == 2


def test_requests_above_the_rate_of_their_address_are_refused_whatever_key_they_bring() -> None:
    asked = rules(GateLimits(max_requests_per_second_per_address=1))
    answers = [post(asked, {"apikey": str(number)}).status for number in range(12)]
    assert answers == [202] * 10 + [429] * 2
    assert post(asked, {}, address="192.0.2.2").status == 202
    assert count(asked, "address_requests") == 2


def test_health_and_preflights_are_not_counted() -> None:
    asked = rules(GateLimits(max_requests_per_second_per_key=1, max_requests_per_second_per_address=1))
    for _ in range(30):
        assert get(asked, "/live", {"apikey": "k"}).status == 200
        assert get(asked, PATH, {"apikey": "k"}, "OPTIONS").status == 204
    assert post(asked, {"apikey": "k"}).status == 202


def test_a_foreign_page_is_sent_away_and_an_allowed_one_may_read() -> None:
    asked = rules(origins="https://app.example.org")
    answer = post(asked, {"origin": "https://evil.test", "host": "node:1"})
    assert (answer.status, answer.json["error"]) == (403, "Origin not allowed")
    assert "access-control-allow-origin" not in answer.headers
    assert get(asked, PATH, {"origin": "https://evil.test"}, "OPTIONS").status == 403
    assert count(asked, "origin") == 2
    for method, status in (("OPTIONS", 204), ("POST", 202)):
        answer = get(asked, PATH, {"origin": "https://app.example.org"}, method)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://app.example.org")
        assert "Origin" in answer.headers["vary"]
    assert post(asked, {"origin": "http://node:1", "host": "node:1"}).status == 202, "the console's own page"
    assert post(asked, {}).status == 202, "no browser"


@pytest.mark.parametrize("path", ["/metrics", "/health"])
def test_numbers_ask_for_the_token_if_there_is_one(path: str) -> None:
    asked = rules(metrics_token="s3cret")
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "s3cret"},
        {"authorization": "Basic s3cret"},
    ):
        answer = get(asked, path, headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "s3cret" not in answer.body.decode()
    assert get(asked, path, {"authorization": "Bearer s3cret"}).status != 401
    assert count(asked, "metrics_token") == 4


@pytest.mark.parametrize("path", ["/live", "/ready", "/readyz", "/healthz", "/healthcheck", "/", "/console"])
def test_probes_and_the_console_are_open_even_then(path: str) -> None:
    assert get(rules(metrics_token="s3cret"), path).status in (200, 503)


@pytest.mark.parametrize(("method", "path"), [("GET", "/live"), ("GET", "/nowhere"), ("OPTIONS", PATH), ("GET", "/")])
def test_every_answer_carries_headers_for_browsers(method: str, path: str) -> None:
    plain, tls = (get(rules(https=https), path, {}, method).headers for https in (False, True))
    assert plain["x-content-type-options"] == "nosniff"
    assert plain["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in plain["content-security-policy"]
    assert "strict-transport-security" not in plain
    assert tls["strict-transport-security"] == "max-age=31536000"
