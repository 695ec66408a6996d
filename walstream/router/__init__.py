"""Which of the connected clients' bindings a change matches, without work for those it does not."""

from __future__ import annotations

from walstream.router.binding import ANY, Binding, Event, wire_ids
from walstream.router.client_filter import parse_filter
from walstream.router.index import Router

__all__ = ["ANY", "Binding", "Event", "Router", "parse_filter", "wire_ids"]
