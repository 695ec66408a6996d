"""The libraries at the server's edge each live in one file, so that replacing one means changing one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tidy import rules

PACKAGE = Path(__file__).parents[2] / "walstream"


@pytest.mark.parametrize(
    ("library", "home"),
    [("trio_websocket", "websocket.py"), ("hypercorn", "http_edge.py"), ("h11", "head.py")],
)
def test_a_library_of_the_edge_is_known_to_one_file(library: str, home: str) -> None:
    users = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if library in rules.imported(path.read_text())}
    assert users == {Path("shell") / home}
