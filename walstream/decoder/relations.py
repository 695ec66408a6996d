"""Relations out of what a message says and what the catalog knows; both decoders name tables the same way.

Reading the messages themselves is the decoders' own.
"""

from __future__ import annotations

from collections.abc import Iterable

from walstream.decoder.values import type_info
from walstream.model import Catalog, CatalogMiss, Column, Relation, RelationInfo, ReplicaIdentity

_UNKNOWN = RelationInfo(0, "", "")


def relation_info(schema: str, name: str, catalog: Catalog) -> RelationInfo:
    """The table's facts; nameless ones for a table that has been dropped since. Raises CatalogMiss."""
    key = (schema, name)
    if key not in catalog.relations:
        raise CatalogMiss(relations=(key,))
    return catalog.relations[key] or _UNKNOWN


def root_name(schema: str, name: str, info: RelationInfo) -> tuple[str, str]:
    """Under which name subscribers know the table."""
    return info.root if info.root != ("", "") else (schema, name)


def build(
    schema: str, name: str, columns: Iterable[tuple[str, int]], info: RelationInfo, catalog: Catalog
) -> tuple[Relation, tuple[int, ...]]:
    """The relation, and for each of its columns the index among ``columns``. Raises CatalogMiss for unknown types.

    ``columns``: names and type OIDs as the message has them, in the order of the leaf's attributes.
    """
    listed = list(columns)
    missing = [oid for _, oid in listed if oid not in catalog.types]
    if missing:
        raise CatalogMiss(types=missing)
    order = list(range(len(listed)))
    if info.root not in (("", ""), (schema, name)):
        place = {column: at for at, column in enumerate(info.column_order)}
        order.sort(key=lambda index: place.get(listed[index][0], len(place)))
    root_schema, root = root_name(schema, name, info)
    names = {column for column, _ in listed}
    relation = Relation(
        root_schema,
        root,
        tuple(Column(listed[at][0], listed[at][1], _type_name(listed[at][1], catalog)) for at in order),
        tuple(column for column in info.primary_key if column in names),
        info.replica_identity,
        leaf=(schema, name) if (root_schema, root) != (schema, name) else None,
        oid=info.oid,
    )
    return relation, tuple(order)


def key_columns(info: RelationInfo, relation: Relation) -> frozenset[str]:
    """Columns whose old values the WAL holds."""
    if info.replica_identity is ReplicaIdentity.FULL:
        return frozenset(column.name for column in relation.columns)
    return frozenset(info.identity_columns)


def _type_name(oid: int, catalog: Catalog) -> str:
    info = type_info(oid, catalog)
    return info.name if info is not None else "unknown"
