"""Known vulnerabilities of what is locked: asks pip-audit and npm audit, and judges what they say.

A finding is a failure unless ``requirements/accepted-advisories.toml`` lists it with a reason and a day. A service that
does not answer is said loudly, and is no failure: a machine without it would be red for nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "dev.txt"  # has all of the others in it
ACCEPTED = ROOT / "requirements" / "accepted-advisories.toml"
SECONDS = 180


class Accepted(NamedTuple):
    """One advisory that is lived with: why, and until when."""

    reason: str
    until: dt.date


class Finding(NamedTuple):
    """One advisory about one package."""

    package: str
    ids: tuple[str, ...]
    text: str


def main() -> int:
    """0: nothing found, or nobody to ask; 1: something to mend."""
    accepted = read_accepted(ACCEPTED.read_text(encoding="utf-8"))
    findings: list[Finding] = []
    silent: list[str] = []
    text = _pip_audit(LOCK)
    found = read_pip_report(text)
    if found is None:
        silent.append("requirements/dev.txt")
    else:
        findings += found
        silent += skipped_in(text)
    found = read_npm_report(_npm_audit())
    if found is None:
        silent.append("integration/clients/package-lock.json")
    else:
        findings += found
    problems = judge(findings, accepted, dt.datetime.now(dt.UTC).date())
    for problem in problems:
        print(f"scripts/audit: {problem}", file=sys.stderr)
    if silent:
        print(f"scripts/audit: NOT AUDITED, the advisory service did not answer: {', '.join(silent)}", file=sys.stderr)
    if not problems and not silent:
        print("scripts/audit: no known vulnerabilities", file=sys.stderr)
    return 1 if problems else 0


def judge(findings: Sequence[Finding], accepted: Mapping[str, Accepted], today: dt.date) -> list[str]:
    """What has to be mended, a line each."""
    problems = []
    for finding in sorted(set(findings)):
        listed = next((accepted[id_] for id_ in finding.ids if id_ in accepted), None)
        if listed is None:
            problems.append(f"{finding.package}: {', '.join(finding.ids)}: {finding.text}")
        elif listed.until < today:
            problems.append(f"{finding.package}: {finding.ids[0]} was accepted until {listed.until}: {listed.reason}")
    known = {id_ for finding in findings for id_ in finding.ids}
    stale = [id_ for id_, listed in accepted.items() if listed.until < today and id_ not in known]
    return problems + [
        f"{id_}: accepted until {accepted[id_].until}, and not found any more: remove it" for id_ in stale
    ]


def read_accepted(text: str) -> dict[str, Accepted]:
    """Tables by advisory, each with ``reason`` and ``until``. Raises ValueError for one without."""
    listed: dict[str, Accepted] = {}
    for id_, entry in tomllib.loads(text).items():
        reason, until = entry.get("reason"), entry.get("until")
        if not isinstance(reason, str) or not reason.strip() or type(until) is not dt.date:
            raise ValueError(f"{id_}: an accepted advisory has a reason and a day (until = 2026-01-31)")
        listed[id_] = Accepted(reason, until)
    return listed


def read_pip_report(text: str) -> list[Finding] | None:
    """What pip-audit found; None where it could ask nobody."""
    try:
        report = json.loads(text)
    except ValueError:
        return None
    packages: list[dict[str, Any]] = report["dependencies"]
    if packages and all("skip_reason" in package for package in packages):
        return None
    return [
        Finding(f"{package['name']} {package['version']}", _ids(found), _line(found.get("description", "")))
        for package in packages
        for found in package.get("vulns", ())
    ]


def skipped_in(text: str) -> list[str]:
    """The packages that pip-audit could learn nothing about."""
    return [package["name"] for package in json.loads(text)["dependencies"] if "skip_reason" in package]


def read_npm_report(text: str) -> list[Finding] | None:
    """What npm audit found; None where it could ask nobody."""
    try:
        report = json.loads(text)
    except ValueError:
        return None
    if "vulnerabilities" not in report:
        return None
    return [
        Finding(name, (found["url"].rpartition("/")[2],), _line(found.get("title", "")))
        for name, package in report["vulnerabilities"].items()
        for found in package["via"]
        if isinstance(found, dict)
    ]


def _ids(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (found["id"], *found.get("aliases", ()))


def _line(text: str) -> str:
    return " ".join(text.split())[:150]


def _pip_audit(lock: Path) -> str:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    return _output([*command, "--format", "json", "--progress-spinner", "off", "--timeout", "10"], ROOT)


def _npm_audit() -> str:
    npm = shutil.which("npm")
    return _output([npm, "audit", "--json"], ROOT / "integration" / "clients") if npm else ""


def _output(command: list[str], directory: Path) -> str:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
