"""What the dependency audit makes of the reports that it gets, and of the advisories that are lived with."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from scripts._audit import (
    ACCEPTED,
    Accepted,
    Finding,
    judge,
    read_accepted,
    read_npm_report,
    read_pip_report,
    skipped_in,
)

TODAY = dt.date(2026, 6, 1)
BAD = Finding("pkg 1.0", ("PYSEC-1", "CVE-2026-1"), "bad")


def test_a_finding_is_a_failure_that_names_package_and_advisory() -> None:
    report = {
        "dependencies": [
            {"name": "good", "version": "2", "vulns": []},
            {"name": "unknown", "skip_reason": "not there"},
            {
                "name": "pkg",
                "version": "1.0",
                "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "description": "b\nad"}],
            },
        ]
    }
    assert skipped_in(json.dumps(report)) == ["unknown"]
    assert read_pip_report(json.dumps(report)) == [Finding("pkg 1.0", ("PYSEC-1", "CVE-2026-1"), "b ad")]
    assert judge([BAD, BAD], {}, TODAY) == ["pkg 1.0: PYSEC-1, CVE-2026-1: bad"]


def test_an_accepted_advisory_is_none_until_its_day_has_passed() -> None:
    accepted = read_accepted('[CVE-2026-1]\nreason = "not reached"\nuntil = 2026-06-01\n')
    assert accepted == {"CVE-2026-1": Accepted("not reached", TODAY)}
    assert judge([BAD], accepted, TODAY) == []
    later = TODAY + dt.timedelta(days=1)
    assert judge([BAD], accepted, later) == ["pkg 1.0: PYSEC-1 was accepted until 2026-06-01: not reached"]
    assert judge([], accepted, later) == ["CVE-2026-1: accepted until 2026-06-01, and not found any more: remove it"]


@pytest.mark.parametrize(
    "text", ['[A]\nreason = "x"', "[A]\nuntil = 2026-06-01", '[A]\nreason = " "\nuntil = 2026-06-01']
)
def test_an_advisory_is_accepted_with_a_reason_and_a_day(text: str) -> None:
    with pytest.raises(ValueError, match="a reason and a day"):
        read_accepted(text)


@pytest.mark.parametrize(
    "text", ["", "Traceback", json.dumps({"dependencies": [{"name": "a", "skip_reason": "no answer"}]})]
)
def test_a_service_that_does_not_answer_is_told_from_one_that_found_nothing(text: str) -> None:
    assert read_pip_report(text) is None
    assert read_pip_report('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}') == []


def test_npm_is_read_likewise() -> None:
    via = [{"url": "https://example.org/advisories/GHSA-1", "title": "bad"}, "another-package"]
    assert read_npm_report(json.dumps({"vulnerabilities": {"ws": {"via": via}}})) == [Finding("ws", ("GHSA-1",), "bad")]
    assert read_npm_report('{"vulnerabilities": {}}') == []
    assert read_npm_report('{"message": "405 Method Not Allowed"}') is None


def test_the_list_of_accepted_advisories_is_in_order() -> None:
    read_accepted(ACCEPTED.read_text(encoding="utf-8"))
