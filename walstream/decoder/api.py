"""What every decoder offers; the shell knows no more of an output plugin than this.

Which plugins exist is in the package's ``DECODERS``; how records become transactions is in ``history.assemble``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from walstream.model import Record

Wanted: TypeAlias = Callable[[str, str], bool]
"""Whether changes of the table (schema, name), a partition's root, are of any use."""


class Decoder(Protocol):
    """Reads the messages of one output plugin. One connection's stream goes through one decoder, in order."""

    plugin: str

    def options(self) -> dict[str, str]:
        """Plugin options for START_REPLICATION (PostgreSQL 17, 53.4)."""
        ...

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        """What one message means; None for what nobody wants. ``data_start``: the LSN in its header.

        Raises CatalogMiss when facts are missing: load them and hand the same message in again.
        Raises DecodeError for a message that is not valid.
        """
        ...

    def replan(self) -> None:
        """Forget what ``wanted`` answered."""
        ...

    def reset(self) -> None:
        """The connection ended: forget the transaction that was under way and everything the server told."""
        ...
