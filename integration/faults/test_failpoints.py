"""A daemon that is killed at each named place comes back, and nobody misses anything or gets it twice."""

from __future__ import annotations

import pytest

from integration.faults.conftest import Open
from integration.faults.failpoints import POINTS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("decoder", ["wal2json", "pgoutput"])
def test_a_daemon_may_die_at_every_named_place(shared: Open, decoder: str) -> None:
    with shared(decoder=decoder, environ={"WALSTREAM_HISTORY_SECONDS": "8s"}) as lab:
        for name in POINTS:
            lab.arm(f"{name}:20" if name not in ("after-confirm", "in-catch-up") else f"{name}:1")
            lab.until_dead()
            lab.write(0.5)
        findings = lab.settle()
        assert findings.all == []
        assert findings.changes
