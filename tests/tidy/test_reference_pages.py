"""The pages on errors and metrics name every code, reason and metric that the sources have, and no other."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import walstream
from walstream import errors
from walstream.telemetry import log
from walstream.telemetry.metrics import REFUSAL_REASONS, WATCHED, Metrics

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def sources(*folders: str) -> str:
    paths = sorted(path for folder in folders for path in (ROOT / "walstream" / folder).rglob("*.py"))
    assert paths
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def first_words(page: str, heading: str) -> set[str]:
    """What the tables under a heading have in code in their first column."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, f"no heading {heading!r}"
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


def error_classes(base: type[errors.WalstreamError] = errors.WalstreamError) -> Iterator[type[errors.WalstreamError]]:
    yield base
    for child in base.__subclasses__():
        yield from error_classes(child)


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def test_every_class_of_errors_is_documented() -> None:
    for module in pkgutil.walk_packages(walstream.__path__, "walstream."):
        if not module.name.startswith("walstream.cli") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert first_words(page("errors.md"), "Classes") == {found.code for found in error_classes()}


def test_every_reason_of_a_refusal_is_documented() -> None:
    source = sources("shell")
    named = set(re.findall(r'\breason="([a-z_]+)"', source))
    named |= set(re.findall(r'^REASON_[A-Z_]+: Final = "([a-z]+_[a-z_]+)"', source, re.MULTILINE))
    postgres = (ROOT / "walstream/shell/database/postgres.py").read_text(encoding="utf-8")
    named |= set(re.findall(r'"[0-9A-Z]{5}"[:,]\s*\(?\s*"([a-z_]+)"', postgres))
    assert first_words(page("errors.md"), "Reasons of `database_refused`") == named


def test_every_code_that_a_join_is_refused_with_is_documented() -> None:
    told = re.findall(r'(?<!")f?"(?!Code: )([A-Z][A-Za-z]+): ', sources("channel", "shell/channels"))
    told += re.findall(r'Trouble\("([A-Za-z]+)"', sources("channel"))
    told += re.findall(r'_end\(channel, "([A-Za-z]+)"', sources("channel"))
    tokens = re.findall(r'(?:TokenError|__init__)\("([A-Za-z]+)"', sources("auth"))
    assert {"InvalidJWTToken", "MalformedJWT"} <= set(tokens)
    assert first_words(page("errors.md"), "Refused joins") == {*told, *tokens}


def test_every_complaint_is_documented() -> None:
    named = set(re.findall(r'Complaint\("([A-Za-z]+)"', sources("channel")))
    assert first_words(page("errors.md"), "Complaints") == named


def test_every_metric_is_documented() -> None:
    metrics = Metrics()
    for name in WATCHED:
        metrics.watch(name, lambda: 0.0)
    families = set(re.findall(r"^# TYPE (walstream_\w+)", metrics.page()[0].decode(), re.MULTILINE))
    shown = {name for name in families if not name.endswith("_created")}
    assert first_words(page("health-and-metrics.md"), "Metrics") == shown


def test_every_reason_that_refusals_are_counted_by_is_documented() -> None:
    assert first_words(page("health-and-metrics.md"), "Refusals") == set(REFUSAL_REASONS)


def test_every_log_event_is_documented_if_something_writes_it() -> None:
    source = sources("shell") + (ROOT / "walstream/app.py").read_text(encoding="utf-8")
    constants = {name: value for name, value in vars(log).items() if name.isupper() and isinstance(value, str)}
    written = {value for name, value in constants.items() if re.search(rf"\b{name}\b", source)}
    assert first_words(page("health-and-metrics.md"), "Log events") == written


def test_the_house_plan_names_every_file() -> None:
    plan = (ROOT / "docs/house-plan.md").read_text(encoding="utf-8")
    package = ROOT / "walstream"
    names = [path.stem for path in sorted(package.rglob("*.py")) if path.parent != package / "cli"]
    assert [name for name in names if not name.startswith("__") and not re.search(rf"[`/]{name}`", plan)] == []
