"""The parts of ``walstream dev`` that need no server; the whole of it is in integration/ops/test_dev.py."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest

from walstream.cli import dev
from walstream.config import Config

FACTS = {
    "address": "127.0.0.1:3100",
    "anon": "a-token",
    "service_role": "another",
    "database_url": "host=/tmp/it's here port=5432 dbname=postgres",
}


def test_the_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = dev.kept_secret(path)
    assert dev.kept_secret(path) == first
    assert len(first) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert dev.kept_secret(tmp_path / "other") != first


def test_the_lines_to_try_survive_a_shell() -> None:
    lines = dev.welcome(FACTS, with_demo=True).splitlines()
    psql = shlex.split(next(line for line in lines if "insert" in line))
    assert psql[1:] == [FACTS["database_url"], "-c", "insert into public.todos (title) values ('buy milk')"]
    listen = shlex.split(next(line for line in lines if "listen" in line))
    assert listen[0] == f"WALSTREAM_DATABASE_URL={FACTS['database_url']}"
    assert listen[-2:] == ["listen", "public.todos"]


def test_without_the_demo_nothing_speaks_of_its_table() -> None:
    assert "todos" not in dev.welcome(FACTS, with_demo=False)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("", {}, ""),
        ("host=a", {"WALSTREAM_DATABASE_URL": "host=a"}, "host=a"),
        ("host=b", {"DATABASE_URL": "host=b"}, ""),
        ("host=c", {"DATABASE_URL": "host=b"}, "host=c"),
        ("host=a", {"WALSTREAM_DATABASE_URL": "host=a", "DATABASE_URL": "host=a"}, "host=a"),
    ],
)
def test_only_a_server_that_was_meant_for_walstream_is_used(
    monkeypatch: pytest.MonkeyPatch, url: str, environ: dict[str, str], expected: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert dev._own_server(Config(database_url=url)) == expected
