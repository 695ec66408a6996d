"""``walstream dev`` as a newcomer runs it: one process that brings everything and takes it away again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from integration.fixtures.daemon import ROOT, free_port
from integration.fixtures.postgres import TestDatabase


class Dev:
    """A running ``walstream dev``; ``text`` is what it has printed so far."""

    def __init__(self, data: Path, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.text = ""
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "walstream", "dev", "--port", str(self.port), "--data", str(data), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._more:
                self.text += line
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """The first match in the output. Fails with the output."""
        deadline = time.monotonic() + seconds
        with self._more:
            while not (match := re.search(pattern, self.text)):
                left = deadline - time.monotonic()
                assert left > 0 and self._reader.is_alive(), f"no {pattern} in:\n{self.text}"
                self._more.wait(left)
        return match

    def wait_ready(self) -> None:
        """Until the daemon says ready."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                try:
                    connection.request("GET", "/ready")
                    if connection.getresponse().status == 200:
                        return
                finally:
                    connection.close()
            time.sleep(0.05)
        raise AssertionError(f"never ready:\n{self.text}")

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        """Stop it as a terminal does; the exit code."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        self._reader.join()
        return code

    def close(self) -> None:
        """Whatever happened, it is gone."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout:
            self.process.stdout.close()


@contextlib.contextmanager
def dev(data: Path, *arguments: str, port: int | None = None) -> Iterator[Dev]:
    running = Dev(data, *arguments, port=port)
    try:
        yield running
    finally:
        running.close()


def printed_psql(text: str) -> list[str]:
    line = next(line for line in text.splitlines() if "insert into public.todos" in line)
    return shlex.split(line)


def test_the_printed_lines_work_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with dev(data) as running:
        running.wait_ready()
        running.wait_for("Ctrl\\+C stops")
        done = subprocess.run(printed_psql(running.text), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "INSERT 0 1\n"), done.stderr
        secret = (data / "secret").read_text().strip()
        for role in ("anon", "service_role"):
            token = running.wait_for(rf"{role}\s+(ey\S+)")[1]
            assert jwt.decode(token, secret, algorithms=["HS256"])["role"] == role
        assert f"http://127.0.0.1:{running.port}/" in running.text
        postmaster = int((data / "postgres" / "postmaster.pid").read_text().split()[0])
        assert Path(f"/proc/{postmaster}").exists()
        assert running.end() == 0
        assert not Path(f"/proc/{postmaster}").exists()
    assert stat.S_IMODE((data / "secret").stat().st_mode) == 0o600
    assert sorted(path.name for path in data.iterdir()) == ["lock", "postgres", "secret"]


def test_the_printed_listen_line_shows_a_row(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as running:
        running.wait_ready()
        line = running.wait_for(r"  (WALSTREAM_DATABASE_URL=.* listen public\.todos)")[1]
        words = shlex.split(line)
        name, _, dsn = words[0].partition("=")
        listening = subprocess.Popen(
            [*words[1:], "--json"], env={**os.environ, name: dsn},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert listening.stdout
        assert listening.stderr
        try:
            # A row is shown from the moment that the slot exists; until then nobody knows, so ask until it is shown.
            seen = threading.Event()
            inserting = threading.Thread(target=insert_until, args=(printed_psql(running.text), seen))
            inserting.start()
            message = json.loads(listening.stdout.readline())
            seen.set()
            inserting.join()
            assert (message["operation"], message["table"], message["new"]["title"]) == ("INSERT", "todos", "buy milk")
        finally:
            seen.set()
            listening.kill()
            listening.wait()
            listening.stdout.close()
            listening.stderr.close()
        assert running.end() == 0


def insert_until(command: list[str], seen: threading.Event) -> None:
    for _ in range(100):
        subprocess.run(command, capture_output=True, check=False)
        if seen.wait(0.2):
            return


def test_a_second_start_has_the_same_data_and_the_same_keys(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tokens: list[str] = []
    counts: list[int] = []
    for _ in range(2):
        with dev(data) as running:
            running.wait_ready()
            tokens.append(running.wait_for(r"anon\s+(ey\S+)")[1])
            insert = printed_psql(running.text)
            subprocess.run(insert, capture_output=True, check=True)
            counted = subprocess.run(
                [*insert[:-2], "-Atc", "select count(*) from public.todos"], capture_output=True, text=True, check=True
            )
            counts.append(int(counted.stdout))
            assert running.end(signal.SIGTERM) == 0
    assert tokens[0] == tokens[1]
    assert counts == [1, 2]


def test_without_the_demo_there_is_no_table(tmp_path: Path) -> None:
    with dev(tmp_path / "data", "--no-demo") as running:
        running.wait_ready()
        dsn = running.wait_for(r"WALSTREAM_DATABASE_URL=('[^']*')")[1]
        done = subprocess.run(
            ["psql", "-XAtd", dsn.strip("'"), "-c", "select to_regclass('public.todos') is null"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "t"
        assert "todos" not in running.text


def test_a_port_in_use_is_told_with_its_holder_before_anything_is_started(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), dev(tmp_path / "data", port=port) as running:
        assert running.process.wait(30) == 1
        running._reader.join()
        assert f"port {port} is in use by" in running.text
        assert f"process {os.getpid()}" in running.text
        assert "--port" in running.text
        assert not (tmp_path / "data" / "postgres").exists()


def test_two_of_them_do_not_share_a_directory(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as first:
        first.wait_ready()
        with dev(tmp_path / "data") as second:
            assert second.process.wait(30) == 1
            second._reader.join()
            assert f"already runs over {tmp_path / 'data'} (process {first.process.pid})" in second.text
        assert first.end() == 0


def test_a_server_of_ones_own_is_used_and_left_running(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of WALSTREAM_DATABASE_URL gets the schema and the table, and is not stopped."""
    monkeypatch.setenv("WALSTREAM_DATABASE_URL", database.dsn)
    with dev(tmp_path / "data") as running:
        running.wait_ready()
        assert running.end() == 0
    assert not (tmp_path / "data" / "postgres").exists()
    subprocess.run(printed_psql(running.text), capture_output=True, check=True)
    assert database.scalar("select count(*) from public.todos") == 1
