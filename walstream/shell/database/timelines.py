"""Where the ancestors of a server's timeline were left.

PostgreSQL 17, 53.4 Streaming Replication Protocol: TIMELINE_HISTORY.
"""

from __future__ import annotations

from typing import Final

import psycopg2

from walstream.history.lineage import Lineage, lineage
from walstream.shell.database.postgres import connect
from walstream.shell.database.rows import only

_MISSING: Final = "58P01"


def trace(dsn: str, system: str, timeline: int) -> Lineage:
    """The lineage of a timeline, by a short replication connection; the first one has no ancestors.

    Blocks; raises WalstreamError, psycopg2.Error. A history file that is not there is a history without ancestors.
    """
    if timeline == 1:
        return lineage(system, timeline)
    opened = connect(dsn, application_name="walstream", replication=True)
    try:
        with opened.cursor() as cursor:
            cursor.execute(f"TIMELINE_HISTORY {timeline}")
            _, content = only(cursor)
    except psycopg2.Error as error:
        if error.pgcode != _MISSING:
            raise
        content = ""
    finally:
        opened.close()
    return lineage(system, timeline, content if isinstance(content, str) else bytes(content).decode(errors="replace"))
