"""Expressions over one row under SQL's three-valued logic, with values typed as PostgreSQL types them."""

from __future__ import annotations

from walstream.predicate.compile import Compiler, Literals, Predicate, compile, literals_needed  # noqa: A004
from walstream.predicate.expression import Expression, columns_of, normalise

__all__ = ["Compiler", "Expression", "Literals", "Predicate", "columns_of", "compile", "literals_needed", "normalise"]
