"""What each life of the daemon, from a start to its end, takes of the machine: memory and descriptors."""

from __future__ import annotations

import os
import time
from pathlib import Path

from integration.faults.observed import Usage
from integration.fixtures.beside import Beside
from integration.fixtures.daemon import Daemon

SECONDS = 2.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Lives(Beside):
    """Used as a context manager. ``samples``: of all lives, in order."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(self._look)
        self._daemon = daemon
        self.samples: list[Usage] = []

    def age(self) -> float:
        """Seconds since the first sample of the life that is lived now."""
        pid = self._daemon.pid
        return next((time.monotonic() - sample.at for sample in list(self.samples) if sample.pid == pid), 0.0)

    def _look(self) -> None:
        while not self.over.wait(SECONDS):
            found = usage(self._daemon.pid) if self._daemon.is_running else None
            if found is not None:
                self.samples.append(found)


def usage(pid: int) -> Usage | None:
    """Of one process; None if it has just gone."""
    place = Path("/proc", str(pid))
    try:
        resident = int((place / "statm").read_text().split()[1]) * _PAGE_BYTES
        return Usage(time.monotonic(), pid, resident, len(os.listdir(place / "fd")))
    except OSError:
        return None
