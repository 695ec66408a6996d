"""Every file of the house against the rules of ``rules.py``, and each rule against a text that breaks it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.tidy import rules

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "walstream"
Rule = Callable[[str], Iterable[str]]


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts]
    assert found
    return sorted(found)


def complaints(rule: Rule, files: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {complaint}"
        for path in files
        for complaint in rule(path.read_text(encoding="utf-8"))
    ]


def test_modules_functions_and_parameter_lists_stay_within_the_budget() -> None:
    assert complaints(rules.size_complaints, python_files("walstream", "tests", "integration", "benchmarks")) == []


def test_every_module_says_what_lives_in_it() -> None:
    assert complaints(rules.docstring_complaints, python_files("walstream", "tests", "integration", "benchmarks")) == []


def test_nothing_unfinished_is_committed() -> None:
    assert complaints(rules.banned_word_complaints, python_files("walstream")) == []


def test_everything_is_caught_only_at_a_marked_bulkhead() -> None:
    assert complaints(rules.catch_all_complaints, python_files("walstream")) == []


def test_a_type_error_is_silenced_with_code_and_reason() -> None:
    assert complaints(rules.ignore_complaints, python_files("walstream", "tests", "integration", "benchmarks")) == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        # The server, and a client of it.
        ("trio_websocket", {"shell/clients/websocket.py", "shell/commands/listen_live.py"}),
        ("hypercorn", {"shell/clients/http_edge.py"}),
        ("h11", {"shell/clients/head.py"}),
    ],
)
def test_a_library_with_sharp_edges_is_behind_one_file(module: str, allowed: set[str]) -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in python_files("walstream")
        if module in rules.imported(path.read_text(encoding="utf-8"))
    }
    assert importers <= allowed


def test_psycopg2_stays_in_the_shell() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in python_files("walstream")
        if "psycopg2" in rules.imported(path.read_text(encoding="utf-8"))
    }
    assert importers <= {"shell"}


def test_the_house_plan_names_every_room() -> None:
    plan = (ROOT / "docs/house-plan.md").read_text(encoding="utf-8")
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert [room for room in rooms if f"`{room}`" not in plan] == []


def test_the_locked_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = ROOT / "requirements"
    assert rules.requirements((folder / "runtime.in").read_text(encoding="utf-8")) == set(project["dependencies"])
    assert rules.requirements((folder / "embedded.in").read_text(encoding="utf-8")) == set(
        project["optional-dependencies"]["embedded"]
    )


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.in")), ids=lambda path: path.stem)
def test_every_requirement_is_locked_with_a_hash(path: Path) -> None:
    locked = path.with_suffix(".txt").read_text(encoding="utf-8")
    names = {line.partition("==")[0].partition("[")[0] for line in locked.splitlines() if "==" in line}
    wanted = {
        requirement.lower().partition(">")[0].partition("=")[0].strip().replace("_", "-")
        for requirement in rules.requirements(path.read_text(encoding="utf-8"))
    }
    assert wanted <= names
    blocks = [block for block in locked.split("\n") if block and not block.startswith((" ", "#"))]
    assert all(block.endswith("\\") for block in blocks), "a requirement without a hash"


def test_lock_files_carry_no_address() -> None:
    for path in (ROOT / "requirements").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        assert "--find-links" not in text
    lock = json.loads((ROOT / "integration/clients/package-lock.json").read_text(encoding="utf-8"))
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [path for path in ROOT.rglob("*.md") if not {".venv", "node_modules", ".git"} & set(path.parts)]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in rules.links(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert pages
    assert broken == []


def test_a_link_is_found_without_its_anchor_and_an_address_is_left_alone() -> None:
    text = "[a](b/c.md#d) and [x](https://example.org) and [e](#here) `[no](code.md)`"
    assert rules.links(text) == ["b/c.md"]


@pytest.mark.parametrize(
    "name",
    [
        "scripts/dev",
        "scripts/test",
        "scripts/bench",
        "scripts/lock",
        "scripts/fuzz",
        "scripts/audit",
        "scripts/faults",
        ".ci/run",
    ],
)
def test_a_script_is_executable_and_parses(name: str) -> None:
    bash = shutil.which("bash")
    assert bash, "the scripts need bash"
    assert os.access(ROOT / name, os.X_OK)
    done = subprocess.run([bash, "-n", ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (rules.size_complaints, "x = 1\n" * 601),
        (rules.size_complaints, "def f():\n" + "    x = 1\n" * 70),
        (rules.size_complaints, "async def f(a, b, c, d, e, f, g, h, i): ..."),
        (rules.docstring_complaints, "import os"),
        (rules.banned_word_complaints, "# TO" + "DO later"),
        (rules.banned_word_complaints, "raise NotImplemented" + "Error"),
        (rules.catch_all_complaints, "try:\n    f()\nexcept Exception:\n    pass"),
        (rules.catch_all_complaints, "try:\n    f()\nexcept (OSError, BaseException) as e:\n    log(e)"),
        (rules.catch_all_complaints, "try:\n    f()\nexcept:\n    raise ValueError"),
        (rules.ignore_complaints, "x = f()  # type:" + " ignore"),
        (rules.ignore_complaints, "x = f()  # type:" + " ignore[arg-type]"),
    ],
)
def test_a_rule_complains_about_a_breach(rule: Rule, source: str) -> None:
    assert len(list(rule(source))) == 1


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (rules.size_complaints, "class A:\n    def f(self, a, b, c, d, e, f, g, h): ..."),
        (rules.docstring_complaints, '"""What."""'),
        (rules.banned_word_complaints, 'TABLE = "public.todos"'),
        (rules.catch_all_complaints, "try:\n    f()\nexcept Exception:  # bulkhead: one socket\n    pass"),
        (rules.catch_all_complaints, "try:\n    f()\nexcept BaseException:\n    close()\n    raise"),
        (rules.catch_all_complaints, "try:\n    f()\nexcept OSError:\n    pass"),
        (rules.ignore_complaints, "x = f()  # type:" + " ignore[arg-type]  # the stub is wrong"),
    ],
)
def test_a_rule_accepts_what_is_allowed(rule: Rule, source: str) -> None:
    assert list(rule(source)) == []
