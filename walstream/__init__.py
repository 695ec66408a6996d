"""walstream: turns any PostgreSQL into a realtime server."""

__version__ = "0.1.0"
