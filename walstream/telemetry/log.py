"""Log set-up and the names of log events: ``noun.past_verb``, one constant each.

Keys are the glossary's nouns (slot, lsn, session_id, peer, code, bytes, seconds …); payloads and tokens are never
logged, and what looks like one is taken out of every line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal, TextIO

import structlog

from walstream.telemetry.redaction import Redactor

SERVER_STARTED: Final = "server.started"
SERVER_DRAINING: Final = "server.draining"
SERVER_STOPPED: Final = "server.stopped"
CONFIG_RELOADED: Final = "config.reloaded"
CONFIG_UNRELOADABLE: Final = "config.unreloadable"
CONFIG_REFUSED: Final = "config.refused"
LISTENER_OVERLOADED: Final = "listener.overloaded"
CONNECTION_REFUSED: Final = "connection.refused"
CONNECTION_FAILED: Final = "connection.failed"
SOCKET_OPENED: Final = "socket.opened"
SOCKET_CLOSED: Final = "socket.closed"
CLIENT_BEHIND: Final = "client.behind"
SNAPSHOT_BROKEN: Final = "snapshot.broken"
SOCKET_TOO_SLOW: Final = "socket.fell_behind"
WEBSOCKET_FAILED: Final = "websocket.failed"
HANDLER_FAILED: Final = "handler.failed"
HTTP_FAILED: Final = "http.failed"
CHANNEL_JOINED: Final = "channel.joined"
CHANNEL_REFUSED: Final = "channel.refused"
ACCESS_LOST: Final = "access.lost"
JOINS_WAITING: Final = "joins.waiting"
CHANNEL_LEFT: Final = "channel.left"
KEYS_CHANGED: Final = "keys.changed"
KEYS_UNREAD: Final = "keys.unread"
REVOCATIONS_CHANGED: Final = "revocations.changed"
REVOCATIONS_UNREAD: Final = "revocations.unread"
CHANNEL_FAULTY: Final = "channel.faulty"
CHANNELS_LOADED: Final = "channels.loaded"
CHANNELS_UNKNOWN: Final = "channels.unknown"
AUTHORIZATION_FAILED: Final = "authorization.failed"
POLICIES_CHANGED: Final = "policies.changed"
MESSAGES_UNSTORED: Final = "messages.unstored"
MESSAGES_MISSED: Final = "messages.missed"
MESSAGES_UNKEPT: Final = "messages.unkept"
MESSAGE_REFUSED: Final = "message.refused"
SLOT_CREATED: Final = "slot.created"
SLOT_ADOPTED: Final = "slot.adopted"
SLOT_TAKEN: Final = "slot.taken"
SLOT_FREED: Final = "slot.freed"
SLOT_DROPPED: Final = "slot.dropped"
SLOT_MOVED: Final = "slot.moved"
SLOT_AHEAD: Final = "slot.ahead"
SLOT_OVER_LIMIT: Final = "slot.over_limit"
SLOT_UNPUBLISHED: Final = "slot.unpublished"
CLUSTER_CHANGED: Final = "cluster.changed"
CLUSTER_PROMOTED: Final = "cluster.promoted"
CLUSTER_FELL_BACK: Final = "cluster.fell_back"
POISON_SKIPPED: Final = "poison.skipped"
POISON_MET: Final = "poison.met"
GAP_TOLD: Final = "gap.told"
SLOT_ABANDONED: Final = "slot.abandoned"
SLOT_FELL_BEHIND: Final = "slot.fell_behind"
SLOT_WAITS: Final = "slot.waits"
SLOT_LOST: Final = "slot.lost"
STREAM_HELD_COMMITS: Final = "stream.held_commits"
READER_STARTED: Final = "reader.started"
READER_STOPPED: Final = "reader.stopped"
READER_FAILED: Final = "reader.failed"
RECORD_REFUSED: Final = "record.refused"
WAL_CONFIRMED: Final = "wal.confirmed"
HEARTBEAT_RETURNED: Final = "heartbeat.returned"
HEARTBEAT_MISSED: Final = "heartbeat.missed"
DATABASE_REACHED: Final = "database.reached"
DATABASE_LOST: Final = "database.lost"
PLAN_CHANGED: Final = "plan.changed"
PLAN_LOST: Final = "plan.lost"
PLAN_RELOADED: Final = "plan.reloaded"
PLAN_FAULTY: Final = "plan.faulty"
PUBLICATIONS_BEHIND: Final = "publications.behind"
NODE_UNREPORTED: Final = "node.unreported"
PRESENCE_UNREPORTED: Final = "presence.unreported"
CONNECTIONS_UNREPORTED: Final = "connections.unreported"
POLICIES_UNASKED: Final = "policies.unasked"
POLICY_FAILED: Final = "policy.failed"
FILTER_UNFIT: Final = "filter.unfit"
BUS_REACHED: Final = "bus.reached"
BUS_LOST: Final = "bus.lost"
BUS_DROPPED: Final = "bus.dropped"
BUS_REFUSED: Final = "bus.refused"
PEER_FOUND: Final = "peer.found"
PEER_LOST: Final = "peer.lost"
MIRROR_STARTED: Final = "mirror.started"
MIRROR_LOST: Final = "mirror.lost"
MIRROR_DROPPED: Final = "mirror.dropped"
CERTIFICATE_LOADED: Final = "certificate.loaded"
CERTIFICATE_REFUSED: Final = "certificate.refused"
HEALTH_CHANGED: Final = "health.changed"

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    form: Literal["", "json", "console"] = "",
    stream: TextIO | None = None,
    redactor: Redactor | None = None,
) -> None:
    """Set structlog up for the process; libraries that use the standard module end in the same lines.

    ``form``: "" is console on a terminal, json else. ``stream``: standard error unless given. ``redactor``: knows the
    secrets of this process.
    """
    hide = redactor or Redactor()
    out = stream if stream is not None else sys.stderr
    as_json = form == "json" or (form == "" and not out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]

    def without_secrets(_: Any, __: str, event: Any) -> Any:
        return hide.value(event)

    # Tracebacks without the values of variables: those hold tokens, rows and passwords.
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            without_secrets,
            structlog.processors.JSONRenderer(),
        ]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback),
            without_secrets,
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,  # a test, and `dev`, may configure twice
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak up for warnings only: their debug lines know nothing of sessions and may hold payloads.
    root.setLevel(max(_LEVELS[level], logging.WARNING))
