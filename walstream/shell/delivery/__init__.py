"""Routed changes become frames, and frames are written to sockets."""
