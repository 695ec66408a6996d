"""Which committed changes leave the database at all: the table realtime.subscriptions as a plan."""

from __future__ import annotations

from walstream.capture.names import TablePattern, parse_table_pattern, quote_identifier, quote_table
from walstream.capture.plan import (
    ALL_EVENTS,
    ROW_EVENTS,
    Admission,
    Fault,
    Plan,
    SubscriptionRow,
    parse_events,
    subscription_row,
)
from walstream.capture.row_filter import parse_row_filter, print_filter

__all__ = [
    "ALL_EVENTS",
    "ROW_EVENTS",
    "Admission",
    "Fault",
    "Plan",
    "SubscriptionRow",
    "TablePattern",
    "parse_events",
    "parse_row_filter",
    "parse_table_pattern",
    "print_filter",
    "quote_identifier",
    "quote_table",
    "subscription_row",
]
