"""Rows in doubt: of which nobody can say whether a viewer may see them, and which therefore nobody gets.

Counted by table and reason, for metrics, health and the log. Who finds them is ``judge``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

REASONS: Final = (
    "unchanged_toast",
    "key_only_old_row",
    "not_a_number",
    "lossy_value",
    "absent_column",
    "system_column",
    "policy_error",
)
"""Why a row may be in doubt; what each means is told in docs/discussion/row-security.md."""

KEYS_MAX: Final = 1000
"""Pairs of table and reason that are counted apart."""

OTHERS: Final = ("", "other tables")
"""Schema and name under which the rest is counted."""


class Doubt(NamedTuple):
    """``rows``: once for each viewer from whom a row was kept."""

    schema: str
    table: str
    reason: str
    rows: int

    @property
    def name(self) -> str:
        """The table for people."""
        return f"{self.schema}.{self.table}" if self.schema else self.table


class Doubts:
    """Counts since the start of this daemon."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], int] = {}

    def count(self, schema: str, table: str, reason: str, rows: int = 1) -> None:
        """Count rows in doubt. ``reason``: one of ``REASONS``."""
        key = (schema, table, reason)
        if key not in self._rows and len(self._rows) >= KEYS_MAX:
            key = (*OTHERS, reason)
        self._rows[key] = self._rows.get(key, 0) + rows

    def __iter__(self) -> Iterator[Doubt]:
        """All counts, by table and reason."""
        return (Doubt(*key, rows) for key, rows in sorted(self._rows.items()))

    def metrics(self) -> list[tuple[str, str, int]]:
        """Table, reason and rows, for ``Metrics.watch_doubts``."""
        return [(doubt.name, doubt.reason, doubt.rows) for doubt in self]

    def health(self) -> list[dict[str, object]]:
        """For ``/health``."""
        return [{"table": doubt.name, "reason": doubt.reason, "rows": doubt.rows} for doubt in self]
