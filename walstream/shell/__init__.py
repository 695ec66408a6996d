"""Everything that waits: PostgreSQL, sockets, clocks, signals."""
