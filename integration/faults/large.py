"""Large transactions and large rows: scenarios that break nothing, and that no memory should hold.

Who subscribes to them keeps of each transaction how many changes came, and a checksum; other subscribers write down all
that they see. The tests' scale is small; whether memory is bounded is for the long tier to say.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from integration.faults import oracles
from integration.faults.lab import Lab
from integration.faults.observed import Tally
from integration.faults.subscribers import read_change
from integration.fixtures.fast import FastClient
from integration.fixtures.node import eventually

TRANSACTION_PEAK_BYTES = 256 << 20
ROW_PEAK_BYTES = 512 << 20
"""What the daemon may have resident at most, with a large transaction, and with a large row."""
PASSING = {
    "scale": 3,
    "rate": 20.0,
    "keeps_all": False,
    "settings": {"wal_sender_timeout": "60s"},
    "environ": {"WALSTREAM_HISTORY_BYTES": "32MiB", "WALSTREAM_HISTORY_SECONDS": "3600s"},
}
"""A large transaction goes through a file, and what follows it stays until the slowest has it, for many minutes. The
server has its usual patience, of which a large row may take a third.
"""
WHOLE = {
    **PASSING,
    "environ": {
        "WALSTREAM_HISTORY_BYTES": "4MiB",
        "WALSTREAM_MAX_RECORD_BYTES": "250MiB",
        "WALSTREAM_OUTBOX_BYTES": "300MiB",
    },
}
"""Large rows are told with their values, too."""
LARGE_VALUES = {
    "v": "repeat('x', %s)",
    "b": "decode(repeat('ab', %s / 2), 'hex')",
    "j": "jsonb_build_object('a', repeat('x', %s))",
}
"""Columns of ``large``, and values whose text has so many bytes."""
SILENCE_SECONDS = 900.0
_Statement = tuple[str, tuple[int, ...]]
_decode = msgspec.json.Decoder().decode


class Counter(FastClient):
    """Subscribed to one table. ``tallies``: of the transactions that it was told, by their commits' ends."""

    def __init__(self, port: int, table: str) -> None:
        self.tallies: dict[int, Tally] = {}
        super().__init__(port, table)
        self._messages = self.messages()

    def count_until(self, is_enough: Callable[[Tally], bool]) -> None:
        """Take changes until the tally of one whole transaction is what was waited for."""
        heard = time.monotonic()
        for message in self._messages:
            if not message:
                assert time.monotonic() < heard + SILENCE_SECONDS, "nothing comes any more"
                continue
            if b'"postgres_changes",{"ids"' not in message[:200]:
                continue
            heard = time.monotonic()
            data = _decode(message)[4]["data"]
            if data.get("record"):
                # As the tap has values: what is JSON within JSON there is a text.
                data["record"] = {name: _text(value) for name, value in data["record"].items()}
            got = read_change(data)
            tally = self.tallies.get(got.end, Tally()).and_then(got.digest, is_last=got.is_last)
            self.tallies[got.end] = tally
            if tally.is_over and is_enough(tally):
                return


def _text(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def write_a_large_transaction(lab: Lab, rng: random.Random) -> None:
    """As large as the plan says, among others: it comes whole and in order, and the daemon stays small."""
    rows = lab.plan.scale * 10_000
    statement = "insert into items (n, v) select n, repeat('x', 100) from generate_series(1, %s) n"
    _weigh(lab, "items", [(statement, (rows,))], lambda tally: tally.rows >= rows, TRANSACTION_PEAK_BYTES)
    lab.write(rng.uniform(0.2, 1.0))


def write_large_rows(lab: Lab, rng: random.Random) -> None:
    """Of each kind that is converted in a way of its own; a client gets them whole."""
    size = lab.plan.scale * 1_000_000
    statements: list[_Statement] = [
        (f"insert into large ({column}) values ({value})", (size,)) for column, value in LARGE_VALUES.items()
    ]
    rng.shuffle(statements)
    statements.append(("insert into large (v) values ('after')", ()))
    _weigh(lab, "large", statements, lambda tally: tally.rows == 1, ROW_PEAK_BYTES)
    lab.write(rng.uniform(0.2, 1.0))


def _weigh(
    lab: Lab, table: str, statements: Sequence[_Statement], is_enough: Callable[[Tally], bool], peak: int
) -> None:
    """Run the statements, and count what comes of ``table`` meanwhile.

    Each when the client has what the one before wrote: what it has yet to read is in memory, too, and would make the
    peak a question of how fast it is.
    """
    with Counter(lab.daemon.port, table) as counter, ThreadPoolExecutor(1, "large") as pool:
        for statement, values in statements:
            written = pool.submit(lab.database.execute, statement, values)
            counter.count_until(is_enough)
            written.result()
    eventually(lambda: lab.tap.newest >= max(counter.tallies), seconds=600)
    lab.complain("P6", oracles.all_counted(counter.tallies, lab.tap.committed(), table))
    lab.complain("P6", oracles.small_enough(lab.daemon.peak_bytes, peak))
    lab.faults += 1
