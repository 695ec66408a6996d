"""Wire formats: bytes to messages and messages to bytes, no state."""
