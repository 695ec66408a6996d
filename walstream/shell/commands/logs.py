"""Messages as they come, and the daemon's own log, for ``walstream logs``.

Messages are asked for again and again: clients' and SQL's come without a NOTIFY that the command line could read.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from walstream.errors import EnvironmentFailure, NotFound
from walstream.shell.commands import messages
from walstream.shell.commands.own_tables import OwnTables, Row

POLL_SECONDS: Final = 0.5
OVERLAP: Final = dt.timedelta(seconds=60)
"""A message is stamped when its transaction starts, and seen when that commits: so much may lie between."""

MOST: Final = 5000
"""Messages that are read at once."""

_CHUNK: Final = 64 * 1024


def follow(
    tables: OwnTables, first: int, wait: Callable[[float], None], say: Callable[[str], None]
) -> Iterator[list[Row]]:
    """The newest ``first`` messages of all topics, oldest first, then new ones for ever. Raises psycopg2.Error.

    ``say``: told where more came in one go than are read at once, and some are left out.
    """
    now = _now(tables)
    shown = messages.latest(tables, None, first)[::-1]
    # What was there and is not among the newest is not new.
    seen = {row["id"]: row["sent_at"] for row in (*messages.since(tables, now - OVERLAP, MOST), *shown)}
    yield shown
    while True:
        wait(POLL_SECONDS)
        # By the server's clock, not by the newest message: a sender may have stamped one with any time.
        horizon, now = now - OVERLAP, _now(tables)
        found = messages.since(tables, horizon, MOST)
        rows = [row for row in found if row["id"] not in seen]
        if len(found) == MOST and found[0]["id"] not in seen:
            say(f"notice: more than {MOST} messages at once: some may be left out")
        seen = {name: sent for name, sent in seen.items() if sent > horizon}
        seen |= {row["id"]: row["sent_at"] for row in rows}
        if rows:
            yield rows


def _now(tables: OwnTables) -> dt.datetime:
    now: dt.datetime = tables.only("select now() as now")["now"]
    return now


def of_file(path: Path, lines: int, wait: Callable[[float], None] | None) -> Iterator[str]:
    """The last lines of a log file, then, where it may ``wait``, those that are added.

    A file that is replaced or cut is read from its start.

    Raises NotFound.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", repair="--file names the daemon's log file") from error
    with file:
        yield "".join(deque((line.decode(errors="replace") for line in file), maxlen=lines))
        while wait is not None:
            wait(POLL_SECONDS)
            if path.exists() and (path.stat().st_ino != _inode(file.fileno()) or path.stat().st_size < file.tell()):
                yield from of_file(path, lines, wait)
                return
            while chunk := file.read(_CHUNK):
                yield chunk.decode(errors="replace")


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def of_unit(unit: str, lines: int, *, forever: bool) -> int:
    """Let journalctl print the log of a service on our standard output; its exit code. Raises EnvironmentFailure."""
    program = shutil.which("journalctl")
    if program is None:
        raise EnvironmentFailure(
            "there is no journalctl here",
            repair="the daemon writes its log to standard error: name the file with --file, or ask what started it",
        )
    command = [program, f"--unit={unit}", f"--lines={lines}", "--no-pager", "--output=cat"]
    return subprocess.run([*command, "--follow"] if forever else command, check=False).returncode  # noqa: S603 - no shell
