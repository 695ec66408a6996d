"""A daemon whose wall clock jumps: ``python -m integration.faults.shifted_clock`` is ``walstream serve`` but for that.

The file that ``SHIFT`` names has the seconds by which it is off, and may change at any time. Monotonic clocks stay.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

VARIABLE = "SHIFT"


def shift() -> None:
    """Put the clock in the place of Python's own, before anybody takes that for a default."""
    real, path = time.time, Path(os.environ[VARIABLE])
    time.time = lambda: real() + float(path.read_text(encoding="ascii") or 0)


if __name__ == "__main__":
    shift()
    from walstream.cli import main
    from walstream.shell.clients import expiries

    expiries.LOOK_SECONDS = 0.2  # type: ignore[misc]  # nobody wants to wait for half a minute
    sys.argv[1:] = ["serve"]
    main()
