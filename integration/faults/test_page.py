"""docs/reliability.md names every scenario, failpoint and bug, and only tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

from integration.faults.failpoints import BUGS, POINTS
from integration.faults.scenarios import BY_NAME

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_page_names_everything() -> None:
    assert [name for name in (*BY_NAME, *POINTS, *BUGS) if f"`{name}`" not in PAGE] == []


def test_every_test_that_it_names_is_there() -> None:
    names = set(re.findall(r"`([a-z]+/test_[a-z_]+\.py)`", PAGE))
    assert len(names) > 20
    assert [name for name in sorted(names) if not (ROOT / "integration" / name).exists()] == []
