"""Topics and the sessions that join them: one connection's state machine."""
