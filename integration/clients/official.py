"""Official clients as processes of their own: each speaks JSON lines with the test that drives it.

What they send over the network is theirs alone; nothing here knows the protocol.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JAVASCRIPT = ("supabase-js", "supabase-js-node20", "supabase-js-vsn1", "realtime-js", "phoenix")
SUPABASE = ("supabase-js", "supabase-js-node20", "supabase-js-vsn1", "realtime-js", "python")
EVERY = (*SUPABASE, "phoenix")
SECONDS = 20.0

Line = dict[str, Any]


def node() -> str:
    """The Node interpreter; the client tests do not run without one."""
    found = shutil.which("node")
    if found is None or not (HERE / "node_modules").is_dir():
        raise RuntimeError("the client tests need Node and the npm packages: scripts/test installs them")
    return found


class OfficialClient:
    """One client process. ``expect`` takes lines in any order and keeps what it passes over."""

    def __init__(self, library: str, url: str, key: str, *more: str) -> None:
        self.library = library
        program = (
            [sys.executable, str(HERE / "driver.py")] if library == "python" else [node(), str(HERE / "driver.mjs")]
        )
        self._process = subprocess.Popen(
            [*program, library, url, key, *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE,
            env={key: value for key, value in os.environ.items() if not key.startswith("WALSTREAM_")},
        )  # fmt: skip
        self._lines: queue.Queue[Line] = queue.Queue()
        self._passed: list[Line] = []
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.expect("ready")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                self._lines.put(json.loads(line))
            except ValueError:
                self._errors.append(line)

    def _read_errors(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._errors.append(line)

    def do(self, command: str, channel: str, **fields: object) -> None:
        """Send one command."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": command, "channel": channel, **fields}) + "\n")
        self._process.stdin.flush()

    def join(self, channel: str, *bind: dict[str, object], config: dict[str, object] | None = None) -> None:
        """Join, and wait until the client says that it is subscribed, and, with changes, that PostgreSQL is too."""
        changes = any(item["type"] == "postgres_changes" for item in bind)
        self.do("join", channel, bind=[*bind, {"type": "system"}], config=config)
        self.expect("status", channel, status="SUBSCRIBED")
        if changes:
            line = self.expect("system", channel)
            assert line["message"]["message"] == "Subscribed to PostgreSQL", line

    def expect(self, kind: str, channel: str | None = None, *, seconds: float = SECONDS, **fields: object) -> Line:
        """The first line of that kind, channel and fields. Fails, showing what came instead, after ``seconds``."""

        def fits(line: Line) -> bool:
            return (
                line["kind"] == kind
                and channel in (None, line["channel"])
                and all(line.get(key) == value for key, value in fields.items())
            )

        for line in self._passed:
            if fits(line):
                self._passed.remove(line)
                return line
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while True:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
                if fits(line):
                    return line
                self._passed.append(line)
        raise AssertionError(
            f"{self.library}: no {kind} {fields or ''} on {channel} within {seconds} s; "
            f"passed over: {self._passed}; stderr: {''.join(self._errors)[-3000:]}"
        )

    def change(self, channel: str, *, tag: str | None = None) -> Line:
        """The next change on ``channel`` in one shape for all clients: type, new, old, columns …"""
        line = self.expect("change", channel) if tag is None else self.expect("change", channel, tag=tag)
        change = line["change"]
        if self.library == "python":
            change = change.get("data", change)
        if "record" in change or "old_record" in change or "type" in change:
            return {
                "eventType": change["type"], "new": change.get("record") or {}, "old": change.get("old_record") or {},
                "schema": change["schema"], "table": change["table"], "errors": change.get("errors"),
                "commit_timestamp": change["commit_timestamp"],
            }  # fmt: skip
        result: Line = change
        return result

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def official_client(library: str, url: str, key: str, *more: str) -> Iterator[OfficialClient]:
    """A connected client, ended afterwards. ``more``: ``callback`` for one that asks for its token again and again."""
    client = OfficialClient(library, url, key, *more)
    try:
        yield client
    finally:
        client.close()


def changes(event: str = "*", table: str = "todos", *, tag: str = "", **more: str) -> dict[str, object]:
    """One ``postgres_changes`` binding."""
    return {
        "type": "postgres_changes", "tag": tag, "filter": {"event": event, "schema": "public", "table": table, **more},
    }  # fmt: skip
