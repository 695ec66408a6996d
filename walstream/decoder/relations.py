"""Relations out of what a message says and what the catalog knows; both decoders name tables the same way.

Reading the messages themselves is the decoders' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from walstream.decoder.values import types_inside
from walstream.model import Catalog, CatalogMiss, Cell, Column, Relation, RelationInfo, ReplicaIdentity, Row

Listed: TypeAlias = tuple[tuple[str, int], ...]
"""Columns as a message has them: names and type OIDs, in the order of the leaf's attributes."""

INTERNED: Final = 4096
"""Definitions that are remembered; beyond them identities are lost, and nothing else."""

_DROPPED: Final = RelationInfo(0, "", "")


class Relations:
    """The relations of one decoder: the same object for the same definition, so that identity is a cache key."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._interned: dict[tuple[object, ...], Relation] = {}

    def info(self, schema: str, name: str) -> RelationInfo:
        """The table's facts; nameless ones for a table that has been dropped since. Raises CatalogMiss."""
        key = (schema, name)
        if key not in self._catalog.relations:
            raise CatalogMiss(relations=(key,))
        return self._catalog.relations[key] or _DROPPED

    def forget(self, schema: str, name: str) -> None:
        """The table may have been altered: the next use asks the catalog again."""
        self._catalog.forget(schema, name)

    def build(
        self, schema: str, name: str, listed: Listed, info: RelationInfo, identity: ReplicaIdentity | None = None
    ) -> tuple[Relation, tuple[int, ...]]:
        """The relation, and for each of its columns the index in ``listed``. Raises CatalogMiss for unknown types.

        ``identity``: the replica identity where the message itself tells it.
        """
        types = types_inside([oid for _, oid in listed], self._catalog)
        order = list(range(len(listed)))
        root_schema, root = root_name(schema, name, info)
        is_leaf = (root_schema, root) != (schema, name)
        if is_leaf:
            place = {column: at for at, column in enumerate(info.column_order)}
            order.sort(key=lambda at: place.get(listed[at][0], len(place)))
        names = {column for column, _ in listed}
        columns = []
        for at in order:
            column, oid = listed[at]
            known = types[oid]
            columns.append(Column(column, oid, known.name if known is not None else "unknown"))
        relation = self._intern(
            Relation(
                root_schema,
                root,
                tuple(columns),
                tuple(column for column in info.primary_key if column in names),
                identity or info.replica_identity,
                leaf=(schema, name) if is_leaf else None,
                oid=info.oid,
            )
        )
        return relation, tuple(order)

    def _intern(self, relation: Relation) -> Relation:
        if len(self._interned) >= INTERNED:
            self._interned.clear()
        definition = tuple(getattr(relation, field) for field in relation.__struct_fields__)
        return self._interned.setdefault(definition, relation)


def root_name(schema: str, name: str, info: RelationInfo) -> tuple[str, str]:
    """Under which name subscribers know the table."""
    return info.root if info.root != ("", "") else (schema, name)


def arrange(cells: Sequence[Cell], order: Sequence[int]) -> Row:
    """The cells of a message as a row: ``order`` has for each column of the relation its cell's index."""
    return tuple([cells[at] for at in order])


def restore(new: Row, old: Row | None) -> Row:
    """The new row with what the WAL leaves out as unchanged, as far as the old row has it."""
    if old is None or None not in new:
        return new
    return tuple([before if after is None else after for after, before in zip(new, old, strict=True)])


def merge(first: Iterable[tuple[str, int]], second: Iterable[tuple[str, int]]) -> Listed:
    """The columns of both lists in one order; that of the longer one where they disagree."""
    longer, shorter = sorted((tuple(first), tuple(second)), key=len, reverse=True)
    names = {name for name, _ in longer}
    return (*longer, *(column for column in shorter if column[0] not in names))
