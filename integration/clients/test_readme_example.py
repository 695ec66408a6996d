"""The example of README.md, word for word, as a reader would run it."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import threading
from pathlib import Path

from integration.clients.official import HERE, node
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.postgres import TestDatabase

ROOT = HERE.parents[1]
EXAMPLE = HERE / "readme_example.mjs"


def test_the_readme_shows_the_file_that_is_tested_and_it_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```js\n(.*?)```", readme, re.DOTALL)
    assert blocks == [EXAMPLE.read_text(encoding="utf-8")]
    assert len(blocks[0].strip().splitlines()) <= 10


def read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        lines.put(line.strip())


def test_the_readme_example_prints_insert_update_and_delete(prepared: TestDatabase, tmp_path: Path) -> None:
    with socket.socket() as probe:
        # The example names the default port, so this test needs it.
        assert probe.connect_ex(("127.0.0.1", 3100)) != 0, "something listens on port 3100 already; stop it"
    prepared.execute(
        "create table public.todos (id bigint primary key, title text); grant select on public.todos to anon"
    )
    prepared.execute(
        "insert into realtime.subscriptions (table_name, events) values ('public.todos', '{INSERT,UPDATE,DELETE}')"
    )
    with running_daemon(prepared.dsn, tmp_path, port=3100), (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [node(), "--no-warnings", "--experimental-websocket", EXAMPLE],
            env={**os.environ, "ANON_TOKEN": token("anon")}, cwd=HERE, text=True,
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout
        reader = threading.Thread(target=read, args=(process, lines))
        reader.start()
        try:
            assert lines.get(timeout=20) == "SUBSCRIBED"
            prepared.execute("insert into public.todos values (1, 'buy milk')")
            assert lines.get(timeout=20) == "INSERT { id: 1, title: 'buy milk' } {}"
            prepared.execute("update public.todos set title = 'buy bread'")
            assert lines.get(timeout=20) == "UPDATE { id: 1, title: 'buy bread' } { id: 1 }"
            prepared.execute("delete from public.todos")
            assert lines.get(timeout=20) == "DELETE {} { id: 1 }"
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()
