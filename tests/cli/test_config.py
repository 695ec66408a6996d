"""``config show`` hides what is secret; ``config check`` finds what would keep the daemon from starting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from walstream.cli import cli

URL = "postgresql://app:hunter2@db.example/app"
ENVIRON = {"WALSTREAM_DATABASE_URL": URL, "WALSTREAM_JWT_SECRET": "hunter2", "WALSTREAM_API_KEYS": "hunter2=anon"}


def config(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments], env=ENVIRON if env is None else env)


@pytest.mark.parametrize("form", [[], ["json"], ["--json"], ["--format", "csv"]])
def test_no_secret_is_shown_in_any_format(form: list[str]) -> None:
    done = config("show", *form)
    assert done.exit_code == 0
    assert "hunter2" not in done.output
    assert "***" in done.stdout


def test_the_effective_values_are_shown_and_the_later_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "walstream.toml"
    file.write_text('slot = "from_file"\nschema = "from_file"\nhistory_bytes = "1MiB"\n')
    done = config("show", "--json", "--config", str(file), "--slot", "from_flag", env={"WALSTREAM_SCHEMA": "from_env"})
    shown = json.loads(done.stdout)
    assert (shown["slot"], shown["schema"], shown["history_bytes"]) == ("from_flag", "from_env", 1048576)
    assert shown["database_url"] == ""


def test_a_configuration_that_is_valid_is_said_to_be() -> None:
    done = config("check", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"valid": True})


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({}, "database_url"),
        ({**ENVIRON, "WALSTREAM_SLOT": "Not A Slot"}, "slot"),
        ({**ENVIRON, "WALSTREAM_HISTORY_BYTES": "many"}, "history_bytes"),
        ({**ENVIRON, "WALSTREAM_HISTROY_BYTES": "1"}, "WALSTREAM_HISTROY_BYTES"),
        ({"WALSTREAM_DATABASE_URL": URL, "WALSTREAM_LISTEN": "0.0.0.0:3100"}, "listen"),
        ({**ENVIRON, "WALSTREAM_JWKS": "/nonexistent/jwks.json"}, "jwks"),
        ({**ENVIRON, "WALSTREAM_ALLOWED_ORIGINS": "app.example.org"}, "allowed_origins"),
        ({**ENVIRON, "WALSTREAM_TRUSTED_PROXIES": "10.0.0.0/99"}, "trusted_proxies"),
        ({**ENVIRON, "WALSTREAM_TLS_CERT": "/nonexistent/cert.pem"}, "tls_key"),
        ({**ENVIRON, "WALSTREAM_TLS_CERT": "/nonexistent/c", "WALSTREAM_TLS_KEY": "/nonexistent/k"}, "tls_cert"),
        ({**ENVIRON, "WALSTREAM_MAX_PRESENCE_CALLS": "-1"}, "max_presence_calls"),
        ({**ENVIRON, "WALSTREAM_CONFIG": "/nonexistent/walstream.toml"}, "/nonexistent/walstream.toml"),
    ],
)
def test_what_is_wrong_is_named_with_its_repair(env: dict[str, str], key: str) -> None:
    done = config("check", env=env)
    assert (done.exit_code, done.stdout) == (2, "")
    cause, repair = done.stderr.splitlines()
    assert key in cause
    assert cause.endswith("[config_error]")
    assert repair.startswith("repair: ")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("content", [b"{}", b"no json", b'{"keys": []}', b"\xff\xfe"])
def test_a_key_set_that_cannot_be_read_is_found(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(content)
    done = config("check", env={**ENVIRON, "WALSTREAM_JWKS": str(file)})
    assert done.exit_code == 2
    assert done.stderr.startswith("error: jwks: ")
