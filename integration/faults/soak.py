"""An hour of everything: mixed load, a fault a minute, and what the daemon takes of the machine meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

from integration.faults import oracles
from integration.faults.lab import Lab

LIFE_SECONDS = 20 * 60.0
"""After which a daemon is killed instead of something else."""
ROUND_SECONDS = 55.0


def stall(lab: Lab, seconds: float, rows: int) -> None:
    """One client does not read for a while.

    ``rows``: of 18 MB in all, which is more than the kernel's buffers and the client's outbox hold.
    """
    stalled = lab.subscribers.members[0]
    stalled.reads = False
    lab.database.execute("insert into items (n, v) select n, repeat('y', %s) from generate_series(1, %s) n",
                         (18_000_000 // rows, rows))  # fmt: skip
    lab.write(seconds)
    stalled.reads = True


def soak(lab: Lab, rng: random.Random) -> None:
    """A minute of mixed load, with a client that stalls and one fault. A daemon that has lived for long is killed."""
    assert lab.database_proxy is not None
    assert lab.client_proxy is not None
    begun = time.monotonic()
    faults: dict[str, Callable[[], object]] = {
        "server killed": partial(lab.restart_server, "kill"),
        "server stopped": partial(lab.restart_server, "fast"),
        "walsender ended": lab.end_walsender,
        "database cut off": lab.database_proxy.reset,
        "clients cut off": lab.client_proxy.reset,
    }
    # Each minute is like the others but for its fault: what is compared later is the same load.
    stall(lab, rng.uniform(2.0, 4.0), rows=2000)
    lab.write(rng.uniform(5.0, 25.0))
    if lab.lives.age() > LIFE_SECONDS:
        lab.kill_daemon()
    else:
        faults[rng.choice(list(faults))]()
    lab.until_streaming()
    lab.write(max(0.0, begun + ROUND_SECONDS - time.monotonic()))
    for table in ("items", "docs", "audit"):  # what tables hold must not be what grows
        lab.database.execute(f"delete from public.{table} where id <= (select max(id) - 20000 from public.{table})")
    lab.complain("memory", oracles.flat_lives(lab.lives.samples))
