"""Tokens of the command line are those that the daemon verifies."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner, Result

from walstream.auth.tokens import Verifier
from walstream.cli import cli

SECRET = "a-secret-for-tests-that-is-at-least-32-bytes-long"


def token(*arguments: str, secret: str = SECRET) -> Result:
    return CliRunner().invoke(cli, ["token", *arguments], env={"WALSTREAM_JWT_SECRET": secret} if secret else {})


def test_the_token_alone_is_printed_and_verifies() -> None:
    done = token("--role", "authenticated", "--sub", "u1", "--expires", "90s")
    assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    claims = Verifier(SECRET).verify(done.stdout.strip(), time.time())
    assert (claims.role, claims.sub) == ("authenticated", "u1")
    issued = json.loads(claims.json)
    assert issued["exp"] - issued["iat"] == 90


def test_claims_are_text_or_json() -> None:
    done = token(
        "--claim", "org=42", "--claim", 'app_metadata:={"admin": true}', "--claim", "a=b=c", "--claim", "e=", "--json"
    )
    shown = json.loads(done.stdout)
    read = json.loads(Verifier(SECRET).verify(shown["token"], time.time()).json)
    assert read == shown["claims"]
    assert {"role": "anon", "org": "42", "app_metadata": {"admin": True}, "a": "b=c", "e": ""}.items() <= read.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--claim", "novalue"], ["--claim", "=x"], ["--claim", "a:={"], ["--claim", "role=service_role"],
        ["--claim", "exp=1"], ["--expires", "soon"], ["--expires", "0"], ["--expires", "-1s"], ["--expires", "999999d"],
        ["--role", ""], ["surplus"],
    ],
)  # fmt: skip
def test_what_makes_no_token_is_a_usage_error(arguments: list[str]) -> None:
    done = token(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_without_a_secret_there_is_nothing_to_sign_with() -> None:
    done = token(secret="")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: jwt_secret: there is no secret to sign with [config_error]\nrepair: set WALSTREAM_JWT_SECRET\n"
    )
