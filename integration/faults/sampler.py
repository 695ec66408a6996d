"""Looks at the daemon's slot every 50 ms, from outside, whatever happens to the server meanwhile."""

from __future__ import annotations

import time

import psycopg2

from integration.faults.observed import Sample
from integration.fixtures.beside import Beside
from integration.fixtures.postgres import TestDatabase

SECONDS = 0.05


class Sampler(Beside):
    """Used as a context manager; ``take`` gives what was sampled since the last call."""

    def __init__(self, database: TestDatabase, slot: str) -> None:
        super().__init__(self._look)
        self._database = database
        self._slot = slot
        self._samples: list[Sample] = []

    def take(self) -> list[Sample]:
        """What was seen since the last call."""
        taken, self._samples = self._samples, []
        return taken

    def _look(self) -> None:
        connection = None
        while not self.over.wait(SECONDS):
            try:
                if connection is None:
                    connection = self._database.connect()
                at = time.time()
                with connection.cursor() as cursor:
                    cursor.execute(
                        "select (confirmed_flush_lsn - '0/0')::bigint from pg_catalog.pg_replication_slots"
                        " where slot_name = %s and confirmed_flush_lsn is not null", (self._slot,),
                    )  # fmt: skip
                    self._samples += [Sample(at, int(confirmed)) for (confirmed,) in cursor.fetchall()]
            except psycopg2.Error:
                connection = None
        if connection is not None:
            connection.close()
