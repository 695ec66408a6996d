"""Connections to PostgreSQL, and the statements that ask it for facts or change what is ours."""
