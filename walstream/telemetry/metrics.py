"""Metrics of one node in Prometheus' text format, each with a bounded set of labels.

What is counted where the work is hot is a plain number there and read only when somebody asks (``watch``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from walstream.telemetry.delays import BOUNDS, Delays, Distribution

Watched = Literal[
    "connections",
    "channels",
    "registered_channels",
    "rooms",
    "presences",
    "broadcasts_in",
    "broadcasts_refused",
    "messages_stored",
    "subscriptions",
    "changes_in",
    "changes_out",
    "frames_out",
    "bytes_out",
    "outbox_bytes",
    "history_bytes",
    "history_seconds",
    "bus_peers",
    "bus_items_in",
    "bus_items_out",
    "bus_items_dropped",
    "bus_gaps",
    "bus_transactions",
    "mirror_sent",
    "mirror_dropped",
    "policy_questions",
    "policy_failures",
    "rows_to_judge",
    "clients_behind",
    "snapshots",
    "snapshots_waiting",
    "snapshot_pages",
    "snapshot_rows",
]

SLOT_TURNS: Final = (
    "created", "adopted", "standby", "freed", "lost", "dropped", "moved", "ahead", "over_limit", "unpublished",
    "abandoned", "other_cluster", "fell_back", "promoted",
)  # fmt: skip
"""Turns of the slot's life; told in docs/reference/health-and-metrics.md."""

GAP_REASONS: Final = (
    "too_old", "other_cluster", "slot_lost", "plan_changed", "poison_skipped", "snapshot_too_long", "too_slow",
)  # fmt: skip

JOIN_RESULTS: Final = ("ok", "refused", "failed")
BUS_REASONS: Final = ("malformed", "forged", "late", "replayed", "missing", "crowded")
REFUSAL_REASONS: Final = (
    "request", "key", "origin", "metrics_token", "draining", "busy", "tls",
    "node_connections", "address_connections", "key_connections", "user_connections", "address_rate",
    "joins", "channels", "messages", "presence", "frames", "key_requests", "address_requests",
)  # fmt: skip
"""What handshakes, requests, joins and messages are refused for; told in docs/reference/health-and-metrics.md."""

CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013})


class _Description(NamedTuple):
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    help: str


WATCHED: Final[dict[Watched, _Description]] = {
    "connections": _Description(GaugeMetricFamily, "WebSockets open now."),
    "channels": _Description(GaugeMetricFamily, "Topics joined now, counted once per socket."),
    "registered_channels": _Description(GaugeMetricFamily, "Rows of the channels table that this node knows."),
    "rooms": _Description(GaugeMetricFamily, "Rooms with somebody of this node in them."),
    "presences": _Description(GaugeMetricFamily, "What sockets of this node track now."),
    "broadcasts_in": _Description(CounterMetricFamily, "Broadcasts of this node's clients."),
    "broadcasts_refused": _Description(CounterMetricFamily, "Broadcasts of clients that were not delivered."),
    "messages_stored": _Description(CounterMetricFamily, "Messages that this node has stored."),
    "subscriptions": _Description(GaugeMetricFamily, "Rows of the subscriptions table in force."),
    "changes_in": _Description(CounterMetricFamily, "Row changes decoded from the WAL and captured."),
    "changes_out": _Description(CounterMetricFamily, "Row changes matched to at least one client."),
    "frames_out": _Description(CounterMetricFamily, "WebSocket frames handed to outboxes."),
    "bytes_out": _Description(CounterMetricFamily, "Bytes written to WebSockets."),
    "outbox_bytes": _Description(GaugeMetricFamily, "Bytes waiting in outboxes."),
    "history_bytes": _Description(GaugeMetricFamily, "Bytes of recent changes in memory."),
    "history_seconds": _Description(GaugeMetricFamily, "Age of the oldest change in the history."),
    "bus_peers": _Description(GaugeMetricFamily, "Other nodes that are there."),
    "bus_items_in": _Description(CounterMetricFamily, "Items of other nodes."),
    "bus_items_out": _Description(CounterMetricFamily, "Items for other nodes."),
    "bus_items_dropped": _Description(CounterMetricFamily, "Items that could not be sent."),
    "bus_gaps": _Description(CounterMetricFamily, "Times at which items may have been missed."),
    "bus_transactions": _Description(CounterMetricFamily, "Transactions that carried items."),
    "mirror_sent": _Description(CounterMetricFamily, "Changes mirrored to NOTIFY."),
    "mirror_dropped": _Description(CounterMetricFamily, "Changes that could not be mirrored."),
    "policy_questions": _Description(CounterMetricFamily, "Questions about private rooms that policies answered."),
    "policy_failures": _Description(CounterMetricFamily, "Of these, those that failed or took too long."),
    "clients_behind": _Description(GaugeMetricFamily, "Joins served from the history: resuming and slow clients."),
    "snapshots": _Description(GaugeMetricFamily, "Snapshots whose rows are being read and sent."),
    "snapshots_waiting": _Description(GaugeMetricFamily, "Snapshots that wait for their turn."),
    "snapshot_pages": _Description(CounterMetricFamily, "Pages of snapshots handed to outboxes."),
    "snapshot_rows": _Description(CounterMetricFamily, "Rows in them."),
    "rows_to_judge": _Description(GaugeMetricFamily, "Rows that PostgreSQL has yet to judge, once per viewer."),
}


class _Reader(Collector):
    def __init__(self) -> None:
        self.reads: dict[Watched, Callable[[], float]] = {}
        self.doubts: Callable[[], Iterable[tuple[str, str, int]]] = tuple
        self.delays: Callable[[], Distribution] = Delays().distribution

    def collect(self) -> Iterable[Metric]:
        doubts = CounterMetricFamily(
            "walstream_rows_in_doubt", "Rows kept from viewers in doubt.", labels=["table", "reason"]
        )
        for table, reason, rows in self.doubts():
            doubts.add_metric([table, reason], rows)
        yield doubts
        counts, total = self.delays()
        bounds = [*map(str, BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            "walstream_delivery_seconds",
            "From commits to sockets.",
            buckets=[*zip(bounds, accumulate(counts), strict=True)],
            sum_value=total,
        )
        for name, read in self.reads.items():
            description = WATCHED[name]
            yield description.kind(f"walstream_{name}", description.help, value=read())


class Metrics:
    """The metrics of one node, in a registry of their own: two nodes may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reader = _Reader()
        self.registry.register(self._reader)
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.joins = Counter("walstream_joins", "Channel joins by result.", ["result"], registry=registry)
        self.closes = Counter("walstream_closes", "WebSockets closed, by code.", ["code"], registry=registry)
        self.slow_closes = Counter("walstream_slow_closes", "WebSockets closed as too slow.", registry=registry)
        self.messages_in = Counter("walstream_messages_in", "Messages of clients.", registry=registry)
        self.decode_errors = Counter("walstream_decode_errors", "WAL records not understood.", registry=registry)
        self.reader_restarts = Counter("walstream_reader_restarts", "Restarts of the WAL stream.", registry=registry)
        self.slot_lag_bytes = Gauge("walstream_slot_lag_bytes", "WAL written but not confirmed.", registry=registry)
        self.slot_retained_bytes = Gauge(
            "walstream_slot_retained_bytes", "WAL kept because of the slot.", registry=registry
        )
        self.slot_left_bytes = Gauge(
            "walstream_slot_left_bytes",
            "WAL that may be written before the slot's budget is used up.",
            registry=registry,
        )
        self.slot_left_seconds = Gauge(
            "walstream_slot_left_seconds", "How long that lasts at the present rate.", registry=registry
        )
        self.slot_turns = Counter("walstream_slot_turns", "Turns of the slot's life.", ["turn"], registry=registry)
        self.slot_state = Gauge(
            "walstream_slot_state", "1 for the slot's newest turn, else 0.", ["turn"], registry=registry
        )
        self.gaps = Counter("walstream_gaps", "Gaps that clients were told of.", ["reason"], registry=registry)
        self.poison_skipped = Counter(
            "walstream_poison_skipped", "What could not be read and was left out.", ["what"], registry=registry
        )
        for what in ("message", "transaction"):
            self.poison_skipped.labels(what)
        for turn in SLOT_TURNS:
            self.slot_turns.labels(turn)
            self.slot_state.labels(turn).set(0)
        for reason in GAP_REASONS:
            self.gaps.labels(reason)
        self.heartbeat_seconds = Gauge(
            "walstream_heartbeat_seconds", "Newest round trip through the WAL.", registry=registry
        )
        self.bus_refused = Counter("walstream_bus_refused", "Notifications not heeded.", ["reason"], registry=registry)
        self.join_seconds = Histogram("walstream_join_seconds", "From join to reply.", registry=registry)
        self.refusals = Counter("walstream_refusals", "What was refused, by reason.", ["reason"], registry=registry)
        for reason in REFUSAL_REASONS:
            self.refusals.labels(reason)
        for result in JOIN_RESULTS:
            self.joins.labels(result)  # present from the start, so that a rate can be taken of the first one
        for reason in BUS_REASONS:
            self.bus_refused.labels(reason)

    def watch(self, name: Watched, read: Callable[[], float]) -> None:
        """Take the value from ``read`` whenever the page is asked for."""
        self._reader.reads[name] = read

    def watch_doubts(self, read: Callable[[], Iterable[tuple[str, str, int]]]) -> None:
        """Take rows in doubt by table and reason from ``read``, which has to bound how many pairs there are."""
        self._reader.doubts = read

    def watch_delays(self, read: Callable[[], Distribution]) -> None:
        """Take from ``read`` how late transactions reach sockets."""
        self._reader.delays = read

    def slot_turned(self, turn: str) -> None:
        """Count a turn of the slot's life, one of ``SLOT_TURNS``, and show it as the newest."""
        self.slot_turns.labels(turn).inc()
        for each in SLOT_TURNS:
            self.slot_state.labels(each).set(each == turn)

    def joined(self, result: Literal["ok", "refused", "failed"]) -> None:
        """Count a join."""
        self.joins.labels(result).inc()

    def refused(self, reason: str) -> None:
        """Count a refusal of ``REFUSAL_REASONS``; one that is not among them counts as "request"."""
        self.refusals.labels(reason if reason in REFUSAL_REASONS else "request").inc()

    def closed(self, code: int) -> None:
        """Count the end of a WebSocket; codes that clients make up count as "other"."""
        self.closes.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def page(self) -> tuple[bytes, str]:
        """The text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4
