"""Secrets do not survive in texts, and everything else does."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import psycopg2
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from walstream.auth.tokens import mint
from walstream.config import Config, passwords_of, secrets_of
from walstream.shell.database.postgres import translate
from walstream.telemetry import log
from walstream.telemetry.redaction import Redactor

JWT = mint("x" * 32, {"role": "anon", "exp": 1})


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"GET /socket/websocket?apikey={JWT}&vsn=2.0.0 HTTP/1.1",
            "GET /socket/websocket?apikey=***&vsn=2.0.0 HTTP/1.1",
        ),
        ("?vsn=1&access_token=abc.def&x=y", "?vsn=1&access_token=***&x=y"),
        ("authorization: Bearer abcdef.123", "authorization: Bearer ***"),
        (f"a token {JWT} in the middle", "a token *** in the middle"),
        ("postgresql://u:p@ss:w/ord@h:5432/db", "postgresql://u:***@ss:w/ord@h:5432/db"),
        ("host=h password='a b\\'c' dbname=d", "host=h password=*** dbname=d"),
        ("password=abc dbname=d", "password=*** dbname=d"),
        ("sb_secret_abc123 and sb_publishable_x", "*** and ***"),
        ("token expired 3 seconds ago; apikey=*** stays", "token expired 3 seconds ago; apikey=*** stays"),
        ("postgresql://u@h/db http://a:8080/x 12:30@noon", "postgresql://u@h/db http://a:8080/x 12:30@noon"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    redactor = Redactor(["hunter22", "hunter", "no"])
    assert redactor.text("xhunter22x hunter no") == "x***x *** no"
    assert redactor.value({"hunter22": ["a hunter22", ("hunter",), 7, None]}) == {"***": ["a ***", ["***"], 7, None]}


@given(st.text(min_size=4, max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_known_secret_survives(secret: str, before: str, after: str) -> None:
    if secret not in "***":
        assert secret not in Redactor([secret]).text(before + secret + after).replace("***", "")


QUOTED = [  # by libpq, of DSNs that it cannot use
    ("postgres//user:pw12345@host/db", 'missing "=" after "postgres//user:pw12345@host/db" in connection info string'),
    (
        "postgresql://u:p@pw12345@h:1/db",
        'could not translate host name "pw12345@h" to address: Name or service not known',
    ),
    ("postgresql://u:pw12345%zz@h/db", 'invalid percent-encoded token: "pw12345%zz"'),
    ("postgresql://u:pw12345/x@h/db", 'invalid integer value "pw12345" for connection option "port"'),
    ("postgresql://u:a%40pw12345@h/db", 'something about "a@pw12345"'),
    ("host=h password='pw12345 x' user=x", "something about 'pw12345 x'"),
    ("postgresql://u@h/db?password=pw12345&x=1", 'something about "pw12345"'),
]


@pytest.mark.parametrize(("dsn", "text"), QUOTED)
def test_no_password_is_quoted_by_an_error_about_its_dsn(dsn: str, text: str) -> None:
    translated = translate(psycopg2.OperationalError(text), Redactor(passwords_of(dsn)))
    assert "pw12345" not in str(translated)
    assert len(str(translated)) > 10
    assert "pw12345" not in Redactor(passwords_of(dsn)).text(f"cannot use {dsn}")


def test_every_secret_of_the_configuration_is_known() -> None:
    config = Config(
        database_url="postgresql://u:pw%4012345@h/db", jwt_secret="jwt-secret-1", api_keys="key-one=anon,key=two=admin",
        cluster_secret="cluster-1", metrics_token="metrics-1",
    )  # fmt: skip
    expected = {"pw%4012345", "pw@12345", "jwt-secret-1", "key-one", "key=two", "cluster-1", "metrics-1"}
    assert expected <= secrets_of(config)


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_show_neither_variables_nor_secrets(form: str) -> None:
    out = io.StringIO()
    log.configure("info", form, out, Redactor(["hunter22"]))  # type: ignore[arg-type]  # of the two literals

    def fails(password: str) -> None:
        kept = password.upper()
        raise ValueError(f"not {password}, {len(kept)}")

    try:
        fails("hunter22")
    except ValueError:
        structlog.get_logger().exception(log.HANDLER_FAILED, password="hunter22", url=f"/x?apikey={JWT}")
    logging.getLogger("library").warning("said %s", JWT)
    text = out.getvalue()
    assert "ValueError" in text
    assert "fails" in text
    for secret in ("hunter22", "HUNTER22", JWT):
        assert secret not in text
