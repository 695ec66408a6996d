"""``walstream init``: roles, schema, tables, functions and grants.

The work is done in ``walstream.shell.commands.migrate``.
"""

from __future__ import annotations

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("init")
@terminal.options()
def command(shell: Terminal) -> None:
    """Make walstream's roles, tables and functions in the database.

    Running it again changes nothing that is there. What the connected user may not do is named, with the statement for
    somebody who may. A schema of the same name that is somebody else's is left alone.
    """
    from walstream.shell.commands import migrate

    with shell.database() as connection:
        reports = migrate.apply(connection, shell.config.schema)
    if shell.format == "json":
        shell.result(reports)
    else:
        shell.rows(
            [{"kind": line.kind, "name": line.name, "state": line.state} for line in reports], ["kind", "name", "state"]
        )
    for line in reports:
        if line.note:
            shell.say(f"{line.kind} {line.name}: {line.note}" + (f"\n  repair: {line.repair}" if line.repair else ""))
    made = sum(line.state == "created" for line in reports)
    shell.say(f"{made} made, {len(reports) - made} left as they are")
