"""What starts a daemon again whenever it ends, as systemd or a container's runtime does; and two daemons on a slot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence

import psycopg2

from integration.faults.failpoints import VARIABLE
from integration.fixtures.beside import Beside
from integration.fixtures.daemon import Daemon
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase


class Supervisor(Beside):
    """Starts the daemon again, at once, whenever it ends. Used as a context manager."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(self._supervise)
        self.daemon = daemon
        self.holds = False
        self.next_fault = ""
        self.deaths: list[float] = []

    def _supervise(self) -> None:
        is_known = False
        while not self.over.wait(0.01):
            if self.daemon.is_running:
                is_known = False
                continue
            if not is_known:
                self.deaths.append(time.time())
                is_known = True
            if not self.holds:
                self.daemon.environ[VARIABLE], self.next_fault = self.next_fault, ""  # a fault happens once
                self.daemon.start(wait="")
                is_known = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The daemon stays down within the context."""
        self.holds = True
        try:
            yield
        finally:
            self.holds = False


class Pair:
    """Two daemons on one slot: one streams, the other one stands by."""

    def __init__(self, database: TestDatabase, supervisors: Sequence[Supervisor]) -> None:
        self._database = database
        self._supervisors = supervisors

    def in_order(self) -> tuple[Supervisor, Supervisor]:
        """The one that streams and the one that stands by, once they do."""
        found: list[Supervisor] = []

        def found_both() -> bool:
            states = [_state(supervisor.daemon) for supervisor in self._supervisors]
            if sorted(states) != ["standby", "streaming"]:
                return False
            found[:] = [self._supervisors[states.index(state)] for state in ("streaming", "standby")]
            return True

        eventually(found_both)
        return found[0], found[1]

    def end(self, supervisor: Supervisor, number: signal.Signals) -> None:
        """Send a signal, and return when the process is gone. Only a supervisor that holds leaves it so."""
        pid = supervisor.daemon.pid
        deaths = len(supervisor.deaths)
        os.kill(pid, number)
        eventually(lambda: len(supervisor.deaths) > deaths)

    @contextlib.contextmanager
    def frozen(self, supervisor: Supervisor) -> Iterator[int]:
        """The one that streams is stopped, and the server has given it up: the slot is free, or the other one's.

        Gives where the WAL ended when it was stopped.
        """
        holder = self._holder()
        os.kill(supervisor.daemon.pid, signal.SIGSTOP)
        try:
            end = int(self._database.scalar("select (pg_current_wal_insert_lsn() - '0/0')::bigint"))
            eventually(lambda: self._holder() != holder)
            yield end
        finally:
            os.kill(supervisor.daemon.pid, signal.SIGCONT)

    def _holder(self) -> int | None:
        try:
            pid: int | None = self._database.scalar(
                "select active_pid from pg_replication_slots where slot_name = %s", (self._supervisors[0].daemon.slot,)
            )
        except psycopg2.Error:
            self._database.close()
            raise
        return pid


def _state(daemon: Daemon) -> str:
    try:
        return str(json.loads(daemon.get("/health")[1])["reader"]["status"])
    except (OSError, ValueError):
        return ""
