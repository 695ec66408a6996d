"""Expressions over one row under SQL's three-valued logic, with values typed as PostgreSQL types them."""
