"""``walstream subscribe``: capture the changes of a table.

The work is done in ``walstream.shell.commands.subscriptions``.
"""

from __future__ import annotations

from typing import Literal

import click

from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.command("subscribe")
@click.argument("table")
@click.argument("events", required=False, default="INSERT,UPDATE,DELETE")
@click.argument("row_filter", required=False, metavar="[FILTER]")
@click.option("--columns", help="Columns that leave the database, comma-separated; the primary key always does.")
@click.option(
    "--replica-identity", type=click.Choice(["full", "default"]), help="Also set the table's REPLICA IDENTITY."
)
@click.option("--notify", is_flag=True, help='Also NOTIFY "realtime:table:<schema>.<table>" after the commit.')
@terminal.options()
def command(
    shell: Terminal, table: str, events: str, row_filter: str | None, columns: str | None,
    replica_identity: Literal["full", "default"] | None, *, notify: bool,
) -> None:  # fmt: skip
    """Capture the changes of TABLE: schema.table, a name on the search path, schema.* or *.*.

    EVENTS is a list of INSERT, UPDATE, DELETE and TRUNCATE, or * for the first three. FILTER is a condition on the row,
    such as "post_id = '123' and not deleted". Subscribing again replaces what was there. The id is printed on stdout.
    """
    from walstream.capture import parse_events
    from walstream.shell.commands import subscriptions
    from walstream.shell.database import slots, tables

    wish = subscriptions.Wish(
        table,
        parse_events(event for event in events.split(",") if event.strip()),
        row_filter if row_filter and row_filter.strip() else None,
        subscriptions.parse_columns(columns) if columns is not None else None,
        notify,
        replica_identity,
    )
    settings = shell.config
    with shell.database(search_path=None) as connection:
        search_path = tables.take_search_path(connection)
        done = subscriptions.subscribe(
            connection,
            settings.schema,
            wish,
            search_path=search_path,
            with_publications=slots.may_need_publications(connection, settings.slot, settings.decoder),
        )
    if shell.format == "table":
        shell.result(done.id)
    else:
        shell.record(
            {
                "id": done.id,
                "table_name": done.pattern,
                "tables": [found.pattern for found in done.tables],
                "changed": done.changed,
                "warnings": list(done.warnings),
            }
        )
    shell.say(f"{done.pattern} is captured" + ("" if done.changed else ", as it was before"))
    for warning in done.warnings:
        shell.say(f"warning: {warning.cause} [{warning.code}]\nrepair: {warning.repair}")
    for statement, refusal in done.publications.missing if done.publications else ():
        shell.say(f"warning: a publication is not up to date: {refusal}\nrepair: its owner runs: {statement}")
