"""WAL messages of an output plugin become Begin, Change, Commit and Message values."""

from __future__ import annotations

from walstream.decoder.api import MESSAGE_PREFIX, Decoder, Wanted
from walstream.decoder.pgoutput import Pgoutput
from walstream.decoder.wal2json import Wal2json
from walstream.model import Catalog

DECODERS = ("wal2json", "pgoutput")
"""Output plugins by preference."""

__all__ = ["DECODERS", "MESSAGE_PREFIX", "Decoder", "Wanted", "make"]


def make(
    plugin: str, catalog: Catalog, *, wanted: Wanted, publication_names: tuple[str, ...] = (), filter_tables: str = ""
) -> Decoder:
    """The decoder of an output plugin. Raises KeyError for one that is not in ``DECODERS``."""
    if plugin == "wal2json":
        return Wal2json(catalog, wanted=wanted, filter_tables=filter_tables)
    if plugin == "pgoutput":
        return Pgoutput(catalog, wanted=wanted, publication_names=publication_names)
    raise KeyError(plugin)
