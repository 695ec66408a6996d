"""Each fuzz target for a moment, and every input that once was a crash. ``scripts/fuzz`` goes on for longer."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from tests.fuzz.engine import CORPUS, mutated, run_by_mutation
from tests.fuzz.targets import TARGETS

RUNS = 10_000
SLOW_RUNS = {"json_schema": 2_000}
"""Inputs for each target: a second or two."""

CRASHES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_unexpected_is_raised_by_a_few_thousand_inputs(name: str) -> None:
    runs = SLOW_RUNS.get(name, RUNS)
    assert run_by_mutation(name, runs=runs) == runs


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read_and_reach_the_end(name: str) -> None:
    found = TARGETS[name]
    read = 0
    for seed in found.seeds:
        with contextlib.suppress(*found.allowed):
            found.run(seed)
            read += 1
    assert read, "no seed is a good input: the fuzzer would never get behind the first check"


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_what_once_was_a_crash_is_none_any_more(path: Path) -> None:
    found = TARGETS[path.parent.name]
    with contextlib.suppress(*found.allowed):
        found.run(path.read_bytes())


def test_every_folder_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)


def test_inputs_repeat_themselves_for_the_same_seed() -> None:
    first, second = (random.Random(7) for _ in range(2))
    seeds = [b"one", b'{"two":2}']
    assert [mutated(first, seeds) for _ in range(50)] == [mutated(second, seeds) for _ in range(50)]
