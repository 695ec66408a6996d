"""``python -m benchmarks [NAME …]``: run all measurements, or the named ones."""

import importlib
import sys

NAMES = (
    "latency",
    "bindings",
    "drain",
    "fanout",
    "memory",
    "rows",
    "broadcast",
    "presence",
    "bus",
    "store",
    "policies",
    "row_security",
    "resume",
    "stalled",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(f"unknown measurement {name!r}: one of {', '.join(NAMES)}")
        importlib.import_module(f"benchmarks.{name}").main()
