"""What one viewer may see of one table: the policies' formulas bound to the claims, or the question for PostgreSQL.

What a formula is, and how it is bound, is in ``formula``. Row-level security says: at least one permissive policy is
true, and every restrictive one (PostgreSQL 17, 5.9 Row Security Policies).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from walstream.model import Catalog, CatalogMiss, Relation
from walstream.policy.model import Ask, Guard, Policy, Protection, Viewer

_LOOSE: Final = frozenset({114, 700, 701, 1700, 3802})
"""json, float4, float8, numeric, jsonb: their null may be another value (docs/reference/values.md)."""


def guard(protection: Protection | None, viewer: Viewer, relation: Relation, catalog: Catalog) -> Guard:
    """What ``viewer`` may see of ``relation``. ``protection``: of its role and table; None: no row-level security.

    Raises CatalogMiss for types that ``catalog`` does not hold yet.
    """
    if protection is None:
        return True
    permissive = [policy for policy in protection.policies if policy.permissive]
    restrictive = [policy for policy in protection.policies if not policy.permissive]
    if not permissive:
        return False
    return _ask(protection, permissive, restrictive, relation, catalog)


def _ask(
    protection: Protection, permissive: list[Policy], restrictive: list[Policy], relation: Relation, catalog: Catalog
) -> Ask:
    policies = (*permissive, *restrictive)
    columns = tuple(sorted({column for policy in policies for column in policy.columns}))
    parts = ["(" + " OR ".join(f"({policy.condition})" for policy in permissive) + ")"]
    parts += [f"({policy.condition})" for policy in restrictive]
    return Ask(
        protection.schema,
        protection.table,
        " AND ".join(parts),
        columns,
        _loose((name for name, _ in columns), relation, catalog),
        next((policy.problem for policy in policies if policy.problem), ""),
    )


def _loose(names: Iterable[str], relation: Relation, catalog: Catalog) -> frozenset[str]:
    positions = relation.positions
    return frozenset(
        name
        for name in names
        if name in positions and _may_be_loose(relation.columns[positions[name]].type_oid, catalog, set())
    )


def _may_be_loose(oid: int, catalog: Catalog, seen: set[int]) -> bool:
    """Whether a null in a value of the type may stand for something else. Raises CatalogMiss."""
    if oid in _LOOSE:
        return True
    if oid in seen:
        return False
    seen.add(oid)
    if oid not in catalog.types:
        raise CatalogMiss(types=(oid,))
    info = catalog.types[oid]
    if info is None:
        return False
    inner = (info.element, info.base, *(field for _, field in info.fields))
    return any(_may_be_loose(part, catalog, seen) for part in inner if part)
