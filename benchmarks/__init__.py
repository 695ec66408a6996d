"""Measurements against peers and limits of the same run; off the test path. ``scripts/bench`` runs them."""
