"""``walstream doctor``: everything that would keep changes from arriving, with the repair of each.

What is looked at, and how it is judged, is in ``walstream.shell.commands.checkup`` and the rooms that it calls.
"""

from __future__ import annotations

import sys
from collections import Counter

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import EXIT_FAILED, Terminal
from walstream.shell.database.reports import Finding

COLUMNS = ("severity", "code", "subject", "cause", "repair")


@click.command("doctor")
@click.argument("table", required=False)
@click.option("--all", "show_all", is_flag=True, help="Show what is in order, too.")
@terminal.options()
def command(shell: Terminal, table: str | None, *, show_all: bool) -> None:
    """Check server, role, slot and tables, or what concerns one TABLE, and print the repair of what is wrong.

    Ends with 1 where something is an error. Nothing is changed: a temporary slot is made and dropped at once.
    """
    from walstream.shell.commands import checkup

    with shell.database(search_path=None) as connection:
        findings = checkup.run(connection, shell.config, table)
    if shell.format == "table":
        for finding in findings:
            if show_all or finding.severity != "ok":
                show(finding)
    else:
        shell.rows([{name: getattr(finding, name) for name in COLUMNS} for finding in findings], COLUMNS)
    counted = Counter(finding.severity for finding in findings)
    shell.say(", ".join(f"{counted[severity]} {severity}" for severity in ("error", "warning", "unknown", "ok")))
    if counted["error"]:
        sys.exit(EXIT_FAILED)


def show(finding: Finding) -> None:
    """A finding as a person reads it: the repair has a line of its own, to be copied."""
    click.echo(f"{finding.severity:<8} {finding.subject}: {finding.cause} [{finding.code}]")
    if finding.repair:
        click.echo(f"         repair: {finding.repair}")
