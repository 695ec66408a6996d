"""The WAL's side: the slot is read, its messages go through the house, and its health is watched."""
