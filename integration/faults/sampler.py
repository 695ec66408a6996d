"""Looks at the daemon's slot every 50 ms, from outside, whatever happens to the server meanwhile."""

from __future__ import annotations

import threading
import time

import psycopg2

from integration.faults.observed import Sample
from integration.fixtures.postgres import TestDatabase

SECONDS = 0.05


class Sampler:
    """Used as a context manager; ``take`` gives what was sampled since the last call."""

    def __init__(self, database: TestDatabase, slot: str) -> None:
        self._database = database
        self._slot = slot
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def take(self) -> list[Sample]:
        """What was seen since the last call."""
        taken, self._samples = self._samples, []
        return taken

    def _run(self) -> None:
        connection = None
        while not self._over.wait(SECONDS):
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
