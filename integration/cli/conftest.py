"""The command line as its users have it: a process with an environment, an exit code and two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from integration.fixtures.postgres import ROOT, TestDatabase
from walstream.cli import cli


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


class Walstream:
    """``walstream`` over one database."""

    def __init__(self, dsn: str, environ: Mapping[str, str] | None = None) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WALSTREAM_", "PG"))}
        self.environ = {**kept, "PYTHONPATH": str(ROOT), "WALSTREAM_DATABASE_URL": dsn, **(environ or {})}

    def __call__(self, *arguments: str) -> Done:
        """Run a command to its end."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return Done(process.returncode, out, err)

    def ok(self, *arguments: str) -> Done:
        """Run a command that has to succeed."""
        done = self(*arguments)
        assert done.code == 0, done
        return done

    def json(self, *arguments: str) -> Any:
        """What a command that has to succeed prints with ``--json``."""
        return self.ok(*arguments, "--json").value

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        return subprocess.Popen(
            [sys.executable, "-m", "walstream", *arguments],
            env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


class InProcess(Walstream):
    """The same without a process each: for the many short commands of one test."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> Done:
        """Run a command to its end; what it raises that is no exit is a failure of the test."""
        ours = {key: value for key, value in self.environ.items() if key.startswith("WALSTREAM_")}
        unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith(("WALSTREAM_", "PG"))}
        done = CliRunner().invoke(cli, arguments, input=stdin, env={**unset, **ours}, prog_name="walstream")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def run(prepared: TestDatabase) -> InProcess:
    """The command line over ``prepared``, in this process."""
    return InProcess(prepared.dsn, {"WALSTREAM_SLOT": f"walstream_{prepared.name}"})


@pytest.fixture
def walstream(prepared: TestDatabase) -> Walstream:
    """The command line over ``prepared``."""
    return Walstream(prepared.dsn, {"WALSTREAM_SLOT": f"walstream_{prepared.name}"})
