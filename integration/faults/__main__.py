"""``python -m integration.faults``: the long tier. Runs scenarios for some rounds and prints what the oracles say.

Ends with 1 when a promise was not kept, after naming the seed with which the round can be run again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from integration.faults.lab import RECONNECT_SECONDS, Findings, Lab, Plan, laboratory
from integration.faults.oracles import back_in_time, quantile
from integration.faults.scenarios import BY_NAME, SCENARIOS, Scenario
from tests.support import clean_environment

ORACLES = ("P1", "P2", "P3", "P4", "P6", "P8", "P9", "fold", "memory", "back")
SERVERS = ("with-wal2json", "newest")


class Report:
    """One scenario with one decoder."""

    def __init__(self, scenario: Scenario, decoder: str, server: str) -> None:
        self.scenario = scenario
        self.decoder = decoder
        self.server = server
        self.findings = Findings()
        self.rounds = 0

    @property
    def is_held(self) -> bool:
        """Whether every oracle was content."""
        return not self.findings.all

    def cells(self) -> Iterator[str]:
        """The row of the table."""
        findings = self.findings
        yield self.scenario.name
        yield self.decoder if self.server == SERVERS[0] else f"{self.decoder}, {self.server}"
        yield f"{self.rounds}"
        yield f"{findings.faults}"
        yield f"{findings.changes:,}"
        yield f"{findings.delivered:,}"
        for oracle in ORACLES:
            found = findings.complaints.get(oracle)
            yield "-" if found is None else "held" if not found else f"[bold red]{len(found)} times[/]"
        others = sum(len(found) for name, found in findings.complaints.items() if name not in ORACLES)
        yield f"[bold red]{others} times[/]" if others else ""
        pauses = findings.pauses
        yield f"{quantile(pauses, 0.5):.1f} / {quantile(pauses, 0.95):.1f}" if pauses else ""
        yield f"{findings.peak / 1e6:.0f} MB"


def run(
    scenario: Scenario, source: tuple[str, str], rounds: int, seed: int, more: Mapping[str, float | int | None]
) -> Report:
    """Some rounds of a scenario, in laboratories of ``scenario.batch`` each. ``source``: decoder and server.

    ``more``: what the command line says of the plan; None for nothing.
    """
    decoder, server = source
    report = Report(scenario, decoder, server)
    given = {name: value for name, value in more.items() if value is not None}
    if "scale" not in scenario.plan:
        given.pop("scale", None)
    while report.rounds < rounds and not report.findings.all:
        plan = Plan(
            **{"decoder": decoder, "seed": seed + report.rounds, **scenario.plan, **given}, is_newest=server == "newest"
        )
        with _directory() as directory:
            try:
                with laboratory(directory, plan) as lab:
                    _batch(report, lab, rounds, seed)
            except Exception:
                # A laboratory that breaks down is no proof of anything; the other scenarios may be.
                report.findings.add(Findings({"run": [traceback.format_exc()]}))
            if report.findings.all:
                _keep(directory, report.findings)
    if scenario.is_timed:
        report.findings.add(Findings({"back": back_in_time(report.findings.pauses, RECONNECT_SECONDS)}))
    return report


def _batch(report: Report, lab: Lab, rounds: int, seed: int) -> None:
    scenario = report.scenario
    for number in range(report.rounds, min(rounds, report.rounds + scenario.batch)):
        usage = f"{lab.lives.samples[-1]}" if lab.lives.samples else ""
        where = f"{scenario.name}, {report.decoder}, round {number + 1} of {rounds}"
        print(f"    {where} {usage}", file=sys.stderr, flush=True)
        report.rounds += 1
        scenario.run(lab, random.Random(seed + number))
        report.findings.add(lab.settle(may_gap=scenario.may_gap))
        if not report.is_held:
            return


class _directory:  # noqa: N801 - a context manager under the name of what it gives
    """A private directory that the server's account may pass through."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="walstream-faults-"))
        self._path.chmod(0o711)
        return self._path

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _keep(directory: Path, found: Findings) -> None:
    """Put what is needed to understand a failure aside."""
    kept = Path(tempfile.mkdtemp(prefix="walstream-failed-"))
    for path in [*directory.glob("*.log"), *directory.glob("tap.jsonl*"), directory / "server" / "data" / "server.log"]:
        if path.exists():
            shutil.copy(path, kept / path.name)
    (kept / "complaints.txt").write_text("\n".join(found.all), encoding="utf-8")
    print(f"    logs and complaints are in {kept}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Break everything, and see what is kept.")
    parser.add_argument(
        "--rounds", type=int, default=20, help="rounds of the most important scenario; others get a part"
    )
    parser.add_argument("--scenario", action="append", choices=sorted(BY_NAME), help="only this one; may be repeated")
    parser.add_argument("--decoder", choices=("wal2json", "pgoutput"), help="only this one")
    parser.add_argument(
        "--server", choices=SERVERS, default=SERVERS[0], help="the newest of this machine, or of those with wal2json"
    )
    parser.add_argument("--seed", type=int, help="what chance begins with; a new one each time unless given")
    parser.add_argument("--rate", type=float, help="row changes a second, about")
    parser.add_argument(
        "--scale", type=int, default=100, help="rows of a large transaction, in 10,000; bytes of a large row, in 1 MB"
    )
    return parser.parse_args()


def main() -> int:
    """Run, print the table, and return the exit code."""
    arguments = _arguments()
    clean_environment()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 24)
    wanted = (
        [BY_NAME[name] for name in arguments.scenario]
        if arguments.scenario
        else [scenario for scenario in SCENARIOS if scenario.share]
    )
    begun = time.monotonic()
    print(f"seed {seed}", file=sys.stderr)
    reports = []
    for scenario in wanted:
        for decoder in scenario.decoders if arguments.server == SERVERS[0] else ("pgoutput",):
            if arguments.decoder in (None, decoder):
                rounds = arguments.rounds if arguments.scenario else max(1, round(arguments.rounds * scenario.share))
                more = {"rate": arguments.rate, "scale": arguments.scale}
                reports.append(run(scenario, (decoder, arguments.server), rounds, seed, more))
    table = Table(title=f"{arguments.rounds} rounds, seed {seed}, {time.monotonic() - begun:.0f} s")
    for column in (
        "scenario",
        "decoder",
        "rounds",
        "faults",
        "changes",
        "delivered",
        *ORACLES,
        "else",
        "back p50/p95",
        "peak",
    ):
        table.add_column(column)
    for report in reports:
        table.add_row(*report.cells())
    Console(width=max(190, int(os.environ.get("COLUMNS", "0")))).print(table)
    failed = [report for report in reports if not report.is_held]
    for report in failed:
        for line in report.findings.all:
            print(f"{report.scenario.name}, {report.decoder}: {line}")
        again = f'--scenario "{report.scenario.name}" --decoder {report.decoder} --server {report.server}'
        print(f"again: scripts/faults {again} --rounds {report.rounds} --seed {seed}")
    print("all held" if not failed else f"{len(failed)} of {len(reports)} not held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
