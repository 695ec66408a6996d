"""Pure tests: no network, no PostgreSQL, no sleeping. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

from tests.support import clean_environment, load_hypothesis_profile

clean_environment()
load_hypothesis_profile()
