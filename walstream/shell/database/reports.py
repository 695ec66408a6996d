"""What operations on the database report to whoever runs them: objects that were made, findings of a check.

Values only; how they are shown is in ``terminal``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ObjectState = Literal["created", "exists", "missing"]
Severity = Literal["ok", "warning", "error", "unknown"]


class ObjectReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object that ``walstream init`` looked after. ``repair``: the statement for somebody with the privilege."""

    kind: str
    name: str
    state: ObjectState
    note: str = ""
    repair: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One thing that a check looked at. ``code``: stable, snake_case. ``repair``: a statement or command, or ""."""

    code: str
    severity: Severity
    subject: str
    cause: str
    repair: str = ""
