"""What one viewer may see of one table: the policies' formulas bound to the claims, or the question for PostgreSQL.

What a formula is, and how it is bound, is in ``formula``. Row-level security says: at least one permissive policy is
true, and every restrictive one (PostgreSQL 17, 5.9 Row Security Policies).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from walstream.errors import FilterError
from walstream.model import Catalog, Relation
from walstream.policy.formula import Bound, Row, conjunction, disjunction, settle
from walstream.policy.model import Ask, Guard, Protection, Sifted, Viewer
from walstream.policy.terms import Session, Unsure
from walstream.predicate import Expression, compile, normalise  # noqa: A004

ASKS_MAX: Final = 1000
"""Questions that are kept; others are made anew."""

_encode = msgspec.json.Encoder().encode


def guard(protection: Protection | None, viewer: Viewer, relation: Relation, catalog: Catalog) -> Guard:
    """What ``viewer`` may see of ``relation``. ``protection``: of its role and table; None: no row-level security.

    Raises CatalogMiss for types that ``catalog`` does not hold yet.
    """
    if protection is None:
        return True
    if not any(policy.permissive for policy in protection.policies):
        return False
    row = Row(relation, catalog, set())
    try:
        bound = _bind(protection, Session(viewer), row)
    except Unsure:
        return _ask(protection)
    if isinstance(bound, bool):
        return bound
    expression = normalise(bound)
    literals = {(oid, label): _encode(label) for oid, label in row.enums}
    try:
        compile(expression, relation, catalog, literals)
    except FilterError:
        return _ask(protection)
    return Sifted(expression, literals)


def _bind(protection: Protection, session: Session, row: Row) -> bool | Expression:
    """All policies for one viewer. Raises Unsure, CatalogMiss."""
    sides: dict[bool, list[Bound]] = {True: [], False: []}
    open_ends: set[bool] = set()
    for policy in protection.policies:
        if policy.formula is None:
            open_ends.add(policy.permissive)
        else:
            sides[policy.permissive].append(policy.formula(session, row))
    allowed, held = settle(disjunction(sides[True])), settle(conjunction(sides[False]))
    # What is known decides where the rest cannot change it.
    if held is False or (allowed is False and True not in open_ends):
        return False
    if False in open_ends or (True in open_ends and allowed is not True):
        raise Unsure("policies that PostgreSQL has to be asked about")
    return settle(conjunction((allowed, held)))


@lru_cache(maxsize=ASKS_MAX)
def _ask(protection: Protection) -> Ask:
    """The same object for all viewers: who asks may keep what it made of it.

    In the order in which PostgreSQL itself puts them together (rewrite/rowsecurity.c, utils/cache/relcache.c), since
    what is decided before a condition that fails never meets the failure.
    """
    permissive = [policy for policy in reversed(protection.policies) if policy.permissive]
    restrictive = [policy for policy in protection.policies if not policy.permissive]
    policies = (*restrictive, *permissive)
    columns = tuple(sorted({column for policy in policies for column in policy.columns}))
    parts = [f"({policy.condition})" for policy in restrictive]
    parts.append("(" + " OR ".join(f"({policy.condition})" for policy in permissive) + ")")
    return Ask(
        protection.schema,
        protection.table,
        " AND ".join(parts),
        columns,
        next((policy.problem for policy in policies if policy.problem), ""),
    )
