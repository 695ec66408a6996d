"""Row-level security outside the database: what a table's policies say of a row for one viewer."""

from __future__ import annotations

from walstream.policy.guard import guard
from walstream.policy.model import Ask, Guard, Policy, Protection, Sifted, Viewer

__all__ = ["Ask", "Guard", "Policy", "Protection", "Sifted", "Viewer", "guard"]
