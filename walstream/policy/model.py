"""The nouns of row-level security: who looks, what stands in between, and what is known of the answer.

Reading policies from the catalog is ``shell.database.policies``; asking PostgreSQL about rows,
``shell.delivery.judge``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from walstream.predicate import Expression, Literals

if TYPE_CHECKING:
    from walstream.policy.formula import Formula


class Viewer(NamedTuple):
    """Somebody who looks at rows. ``claims``: all of the token's as JSON text, for ``request.jwt.claims``."""

    role: str
    claims: str


class Policy(msgspec.Struct, frozen=True):
    """One policy that applies to a role's SELECT (PostgreSQL 17, 5.9 Row Security Policies).

    ``condition``: its USING expression as SQL, every name but those of pg_catalog qualified; columns inside a
    sub-select are qualified by the table's bare name. ``columns``: those of the row that it looks at, as (name, type as
    SQL writes it, with COLLATE where the column has a collation of its own). ``formula``: the condition where it is
    understood (see ``formula``), None where PostgreSQL has to be asked. ``problem``: why not even that is possible for
    a row outside its table, ``system_column`` for a whole row or ``tableoid`` and its like, "" else.
    """

    name: str
    permissive: bool
    condition: str
    columns: tuple[tuple[str, str], ...]
    formula: Formula | None = None
    problem: str = ""


class Protection(msgspec.Struct, frozen=True):
    """Row-level security between one role and one table, equal for roles to which the same policies apply.

    ``schema`` and ``table``: as subscribers know it, a partition's root. Without a permissive policy nothing is seen.
    """

    schema: str
    table: str
    policies: tuple[Policy, ...]


class Sifted(NamedTuple):
    """The policies as a filter of their own: rows for which it is true are visible. ``literals``: for its values."""

    expression: Expression
    literals: Literals


class Ask(msgspec.Struct, frozen=True):
    """PostgreSQL has to say whether a row is visible.

    ``condition``: SQL over the row's columns, to be evaluated as the viewer; true, false or null. The rows have to go
    by the name ``table`` there, for sub-selects refer to it. ``columns``: those it looks at, as in ``Policy``; a row
    that lacks one of them is in doubt. ``problem``: as in ``Policy``.
    """

    schema: str
    table: str
    condition: str
    columns: tuple[tuple[str, str], ...]
    problem: str = ""


Guard: TypeAlias = bool | Sifted | Ask
"""What one viewer may see of one table: all, nothing, what a filter says, or what PostgreSQL says."""
