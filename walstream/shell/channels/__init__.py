"""Rooms at work: broadcast, presence, registered channels, and what carries them between nodes and to the database."""
