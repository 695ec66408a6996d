"""What every decoder offers; the shell knows no more of an output plugin than this.

Which plugins exist is in the package's ``DECODERS``; how records become transactions is in ``history.assemble``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from walstream.model import Change, Record

Wanted: TypeAlias = Callable[[str, str], bool]
"""Whether changes of the table (schema, name), a partition's root, are of any use."""

MESSAGE_PREFIX: Final = "walstream"
"""The logical messages that are walstream's own (``pg_logical_emit_message``); nobody wants others."""


class Decoder(Protocol):
    """Reads the messages of one output plugin. One connection's stream goes through one decoder, in order."""

    plugin: str

    def options(self) -> dict[str, str]:
        """Plugin options for START_REPLICATION (PostgreSQL 17, 53.4)."""
        ...

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        """What one message means; None for what nobody wants. ``data_start``: the LSN in its header.

        Changes that nobody wants are counted as well, so that the ordinals of the others do not depend on the plan.

        Raises CatalogMiss when facts are missing: load them and hand the same message in again. A table that may
        have been altered is asked for again, so it is named even where the catalog held it.
        Raises DecodeError for a message that is not valid. Raises nothing else, whatever the bytes; and whatever it
        raised, the same message may be handed in again, and no ordinal is lost.
        """
        ...

    def decode_run(self, payloads: Sequence[bytes], starts: Sequence[int]) -> list[Change] | None:
        """What ``decode`` would say of each, in less time, if all are INSERTs into one table that was met before.

        ``starts``: their LSNs. None, with nothing done, where one of them is not, or needs a closer look. Raises
        CatalogMiss, with nothing done, as ``decode`` does.
        """
        ...

    def runs(self, payloads: Sequence[bytes], first: int) -> Iterable[tuple[int, int]]:
        """The messages from ``first`` on in pieces, by index: each a single one, or a run for ``decode_run`` to try.

        Raises nothing.
        """
        ...

    def replan(self) -> None:
        """Forget what ``wanted`` answered."""
        ...

    def reset(self) -> None:
        """The connection ended: forget the transaction that was under way and everything the server told."""
        ...
