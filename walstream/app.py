"""The daemon: every part made once, from one configuration, and the tree of tasks that runs them.

    serve
    ├── signals            first one drains, second one ends at once; SIGHUP reads the configuration again
    ├── edge               listeners, sockets, HTTP
    ├── expiries           tokens and waits that end
    ├── credentials        key sets and lists of revoked tokens that change
    ├── joins              answers joins with what the database says; refreshes rights
    ├── rooms              writes what members say, tells who is present, waits where a client does
    ├── directory          who may be in which room
    ├── authorizer         what policies say of private rooms
    ├── message store      commits what is to be stored, many messages at once
    ├── wal feed           delivers large transactions of stored messages
    ├── bus                tells other nodes and hears them
    ├── relay              tells nodes that stand by what the WAL brings
    ├── presence mirror    this node's rows of realtime.presence, and what SQL tracks there
    ├── connection report  this node's rows of realtime.connections
    ├── fanout             routes transactions that are too large for one go
    ├── publication keeper lets pgoutput's publications follow the plan
    ├── heartbeat          proves the way through the WAL
    ├── node report        tells the database how this daemon fares
    ├── mirror             repeats changes by NOTIFY, where a subscription asks for it
    ├── send away          ends clients' connections when another node has taken the slot
    ├── slot watch         looks at the slot, and for a server that leaves
    └── reader             streams the slot through the pipeline into the fan-out

An error that a task does not expect ends all of them and the process: whoever supervises it starts it again.
"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from walstream import __version__
from walstream.auth.keys import ApiKeys
from walstream.auth.rules import parse_required
from walstream.auth.tokens import Verifier
from walstream.channel.address import parse_networks
from walstream.channel.origins import Origins
from walstream.config import Config, secrets_of
from walstream.errors import ConfigError, WalstreamError
from walstream.history.ring import Ring
from walstream.model import Catalog
from walstream.router import Router
from walstream.shell.channels.authorizer import AskingPostgres, PolicyAuthorizer
from walstream.shell.channels.connection_report import ConnectionReport
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.moderation import Moderation
from walstream.shell.channels.notify_bus import NotifyBus
from walstream.shell.channels.notify_mirror import NotifyMirror
from walstream.shell.channels.presence_mirror import PresenceMirror
from walstream.shell.channels.relay import Relay
from walstream.shell.channels.rooms import Rooms
from walstream.shell.channels.wal_feed import WalFeed
from walstream.shell.clients import http_broadcast, http_replay
from walstream.shell.clients.admission import Admission, session_limits
from walstream.shell.clients.connection import Connections
from walstream.shell.clients.credentials import KeyKeeper, RevocationWatch
from walstream.shell.clients.edge import Edge, Guards
from walstream.shell.clients.expiries import Expiries
from walstream.shell.clients.gaps import Gaps
from walstream.shell.clients.gate import Gate, GateLimits
from walstream.shell.clients.http_app import HttpRules, make_app
from walstream.shell.clients.joins import Joins
from walstream.shell.clients.key_sets import KeySetSource
from walstream.shell.clients.limits import EdgeLimits, raise_open_files
from walstream.shell.clients.snapshots import Limits, Snapshots
from walstream.shell.clients.sockets import REASON_DRAIN, SERVICE_RESTART
from walstream.shell.clients.tls_files import TlsFiles, make_context
from walstream.shell.database.access import TableAccess
from walstream.shell.database.channel_rows import Rows
from walstream.shell.database.postgres import Database, PgConnection, connect, cut_lost
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.delivery.judge import SESSIONS, Judge
from walstream.shell.health import Health
from walstream.shell.reload import Commit, Reload, Step, refused
from walstream.shell.wal.heartbeat import Heartbeat
from walstream.shell.wal.node_report import NodeReport
from walstream.shell.wal.pipeline import Pipeline, PipelineSettings
from walstream.shell.wal.plan_watch import PlanWatch
from walstream.shell.wal.publication_keeper import PublicationKeeper
from walstream.shell.wal.slot_keeper import Reading
from walstream.shell.wal.slot_watch import Look, SlotWatch
from walstream.shell.wal.spill import FileSpill
from walstream.shell.wal.wal_reader import WalReader
from walstream.telemetry import log as logs
from walstream.telemetry.log import SERVER_STARTED, SERVER_STOPPED
from walstream.telemetry.metrics import Metrics
from walstream.telemetry.redaction import Redactor

OPEN_ROLE: Final = "anon"
"""The role of everybody while no key is configured, which only a listener on loopback may be."""

APPLICATION_NAME: Final = "walstream"

GC_THRESHOLDS: Final = (5_000, 200, 10)
"""Changes are many small objects without cycles: at Python's own 700 a fifth of the time goes into looking at them.

Looking at fifty thousand at once holds everybody up by ten milliseconds where thousands of clients come together. What
has lived for long is looked at after ten million objects, which is never on a quiet node: what a connection leaves
behind has to be free of cycles.
"""

log = structlog.get_logger()


class Daemon:
    """All parts of one node, made and joined, not yet running. Raises ConfigError."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.health = Health(
            version=__version__,
            node=f"{socket.gethostname()}:{config.port}/{config.slot}",
            heartbeat_seconds=config.heartbeat_seconds,
        )
        self.metrics = Metrics()
        self.database = Database(config.database_url, APPLICATION_NAME)
        # Apart from what joins need: these tables may have many rows to be swept.
        self.books = Database(config.database_url, f"{APPLICATION_NAME} (presence)", size=2)
        self.ring = Ring(
            bytes_max=config.history_bytes, seconds=config.history_seconds, wal_bytes=config.history_wal_bytes
        )
        catalog = Catalog()
        access = TableAccess(catalog)
        router = Router(catalog, access.guard, loose_deletes=config.loose_deletes)
        self.judge = self._make_judge(catalog)
        self.fanout = self._make_fanout(router, access)
        self.heartbeat = Heartbeat(
            self.database, self.health, node=self.health.node, seconds=config.heartbeat_seconds, metrics=self.metrics
        )
        self.keeper = PublicationKeeper(self.database, config.schema)
        self.pipeline = self._make_pipeline(catalog, access)
        self.reader = self._make_reader()
        self.keeper.on_made = lambda names: self.reader.renew("unpublished", f"{', '.join(names)} had been dropped")
        self.reader.poison.policy = config.poison
        self.reader.life.on_turn = self._slot_turned
        self._away = trio.Event()
        self.watch = self._make_watch()
        self.watch.ask_also = lambda connection: cut_lost(connection, self.pools)
        self.watch.gauge.own_bytes = config.wal_budget_bytes
        self.snapshots = self._make_snapshots(catalog, router)
        self.joins = Joins(
            database=self.database,
            catalog=catalog,
            router=router,
            fanout=self.fanout,
            access=access,
            plans=self.pipeline,
            snapshots=self.snapshots,
            reader=lambda: self.health.reader,
        )
        self.gaps = Gaps(self.joins, self.pipeline, self.metrics)
        self.pipeline.on_gap = self.gaps.tell
        self.pipeline.on_overtaken = self.gaps.overtaken
        self.pipeline.on_anew = self.keeper.on_anew = self.gaps.captured_anew
        self.reader.poison.on_skipped = self.gaps.left_out
        self.plan_watch = PlanWatch(self.database, self.pipeline, self.health, config.schema)
        self.report = self._make_report()
        self.mirror = self.pipeline.mirror = self._make_mirror()
        self.expiries = Expiries()
        # Apart as well: policies are the operator's own SQL, and may take their time.
        self.judges = Database(config.database_url, f"{APPLICATION_NAME} (private rooms)", size=2)
        self.authorizer = PolicyAuthorizer(AskingPostgres(self.judges, config.schema))
        self.directory = Directory(
            Rows(self.database, config.schema), self.authorizer, private_only=config.private_only
        )
        self.authorizer.on_change = self.directory.policies_changed
        self.rooms = self._make_rooms()
        self.feed.on_message = self.rooms.stored
        self.feed.on_commit = self.rooms.passed
        self.feed.on_channels_changed = self.relay.channels
        self.guests = ConnectionReport(self.books, config.schema, self.health.node, config.heartbeat_seconds)
        self.edge = self._make_edge()
        self.reload = Reload(config, self._steps())
        self.pools = self.database, self.books, self.judges, self.judging, self.writer, self.slots
        self._watch_numbers()

    def _make_judge(self, catalog: Catalog) -> Judge:
        # A pool of its own: nothing else waits behind policies.
        self.judging = Database(self.config.database_url, f"{APPLICATION_NAME} (policies)", size=SESSIONS + 1)
        return Judge(self.judging, catalog, Doubts())

    def _make_fanout(self, router: Router, access: TableAccess) -> Fanout:
        fanout = Fanout(
            router,
            self.ring,
            access,
            judge=self.judge,
            doubts=self.judge.doubts,
            max_record_bytes=self.config.max_record_bytes,
        )
        self.judge.on_answers = fanout.judged
        return fanout

    def _make_snapshots(self, catalog: Catalog, router: Router) -> Snapshots:
        config = self.config
        return Snapshots(
            partial(self._open, f"{APPLICATION_NAME} (snapshots)"),
            database=self.database,
            catalog=catalog,
            router=router,
            fanout=self.fanout,
            plans=self.pipeline,
            limits=Limits(config.snapshot_seconds, config.max_snapshots, config.snapshot_rows, config.max_record_bytes),
        )

    def _make_pipeline(self, catalog: Catalog, access: TableAccess) -> Pipeline:
        config = self.config
        return Pipeline(
            PipelineSettings(config.schema, config.publication, config.filter_tables),
            catalog=catalog,
            ring=self.ring,
            fanout=self.fanout,
            access=access,
            database=self.database,
            keeper=self.keeper,
            returned=self.heartbeat.returned,
        )

    def _make_reader(self) -> WalReader:
        config = self.config
        self.slots = Database(config.database_url, APPLICATION_NAME, size=1)
        return WalReader(
            Reading(config.database_url, config.slot, config.decoder, config.schema),
            self.pipeline,
            self.health,
            self.metrics,
            trailing=lambda: not self.watch.must_not_trail,
            started=self._stream_started,
            database=self.slots,
        )

    def _make_watch(self) -> SlotWatch:
        config = self.config
        return SlotWatch(
            partial(self._open, f"{APPLICATION_NAME} (watch)"),
            config.slot,
            self.health,
            wal_bytes=config.history_wal_bytes,
            on_server_leaving=lambda error: self.reader.leave(str(error)),
            on_look=self._slot_seen,
            metrics=self.metrics,
        )

    def _make_edge(self) -> Edge:
        config = self.config
        connections = Connections(self.joins, self.rooms, self.guests, self.expiries, self.metrics)
        self.tls = TlsFiles(config.tls_cert, config.tls_key) if config.tls_cert else None
        source = KeySetSource(config.jwks)
        verifier = self.verifier = _verifier(config, (source.load() or "") if config.jwks else "")
        self.credentials: list[Callable[[], Awaitable[None]]] = [connections.run]
        if config.jwks:
            self.credentials.append(KeyKeeper(verifier, source).run)
        if config.revoked:
            self.credentials.append(RevocationWatch(verifier, Path(config.revoked), connections.recheck).run)
        gate, origins = self.gate, self.origins = Gate(GateLimits.of(config)), Origins(config.allowed_origins)
        self.admission = Admission(verifier, session_limits(config), connections, gate, origins)
        rules = HttpRules(origins, gate, self.metrics, config.metrics_token, https=self.tls is not None)
        routes = [
            *http_broadcast.routes(self.rooms, verifier, max_message_bytes=config.max_message_bytes),
            *http_replay.routes(self.directory, self.store, verifier),
        ]
        return Edge(
            config.host,
            config.port,
            limits=EdgeLimits.of(config),
            admit=self.admission,
            application=make_app(self.health, self.metrics.page, routes, rules),
            health=self.health,
            metrics=self.metrics,
            guards=Guards(gate, origins, self.tls),
        )

    def _open(self, application_name: str) -> PgConnection:
        """A connection for a part that keeps its own. Blocks; raises DatabaseUnreachable or DatabaseRefused."""
        return connect(self.config.database_url, application_name=application_name)

    def _make_rooms(self) -> Rooms:
        config, node = self.config, self.health.node
        self.bus = NotifyBus(
            self._open,
            config.schema,
            node,
            config.cluster_secret or config.jwt_secret,
            metrics=self.metrics,
        )
        self.presence_mirror = PresenceMirror(
            self.books, config.schema, node, outside=lambda entries: self.rooms.outside(entries)
        )
        self.bus.also(f"{config.schema}:presence", self.presence_mirror.notified, self.presence_mirror.again)
        self.writer = Database(config.database_url, f"{APPLICATION_NAME} (messages)", size=2)
        self.store = MessageStore(self.database, self.writer, config.schema, self.bus)
        self.feed = self.pipeline.feed = WalFeed(self.directory, self.store, FileSpill)
        self.relay = Relay(self.bus, is_deaf=lambda: self.health.reader == "standby")
        return Rooms(
            bus=self.bus,
            directory=self.directory,
            store=self.store,
            moderation=Moderation(self.database, config.schema, self.store),
            mirror=self.presence_mirror,
            relay=self.relay,
            max_message_bytes=config.max_message_bytes,
        )

    def _make_report(self) -> NodeReport:
        config = self.config
        return NodeReport(
            self.database,
            self.health,
            lambda: (self.pipeline.plan, self.pipeline.tally),
            schema=config.schema,
            slot=config.slot,
            address=config.listen,
            seconds=config.heartbeat_seconds,
        )

    def _make_mirror(self) -> NotifyMirror:
        config = self.config
        return NotifyMirror(
            self._open,
            config.schema,
            self.health.node,
            lambda: self.ring.cluster,
            metrics=self.metrics,
        )

    def _watch_numbers(self) -> None:
        self.health.subscriptions = lambda: len(self.pipeline.plan.rows)
        self.health.doubts = self.judge.doubts.health
        self.metrics.watch_doubts(self.judge.doubts.metrics)
        self.metrics.watch_delays(self.fanout.delays.distribution)
        watch = self.metrics.watch
        watch("subscriptions", lambda: len(self.pipeline.plan.rows))
        watch("changes_in", lambda: self.pipeline.changes_in)
        watch("changes_out", lambda: self.fanout.changes_out)
        watch("frames_out", lambda: self.fanout.frames_out + self.rooms.groups.frames_out)
        watch("policy_questions", lambda: self.authorizer.questions)
        watch("policy_failures", lambda: self.authorizer.failures)
        watch("registered_channels", lambda: len(self.directory))
        watch("rooms", lambda: len(self.rooms))
        watch("presences", lambda: len(self.rooms.presences))
        watch("broadcasts_in", lambda: self.rooms.broadcasts_in)
        watch("broadcasts_refused", lambda: self.rooms.broadcasts_refused)
        watch("messages_stored", lambda: self.store.stored)
        watch("history_bytes", lambda: self.ring.size)
        watch("clients_behind", lambda: len(self.fanout.pursuits))
        watch("snapshots", lambda: self.snapshots.running)
        watch("snapshots_waiting", lambda: len(self.snapshots) - self.snapshots.running)
        watch("snapshot_pages", lambda: self.snapshots.pages_out)
        watch("snapshot_rows", lambda: self.snapshots.rows_out)
        watch("rows_to_judge", lambda: len(self.judge))
        watch("history_seconds", lambda: self.ring.seconds_kept(trio.current_time()))

    def _stream_started(self) -> None:
        self.watch.look_now()
        self.heartbeat.beat_now()

    def _slot_seen(self, look: Look | None) -> None:
        if self.reader.held_by(look and look.active_pid):
            for pool in self.pools:
                pool.forget_idle()  # they went the same way
        self.ring.wal_bytes = self.watch.wal_bytes
        restart = self.watch.restart_lsn
        retained = look.retained_bytes if look is not None else None
        self.pipeline.slot_seen(restart, restart + retained if retained else 0)
        limit = self.config.slot_drop_bytes
        if limit and retained is not None and retained > limit and self.health.reader != "standby":
            self.reader.renew("over_limit", f"{retained} bytes of WAL are kept back, and {limit} are allowed")

    def _slot_turned(self, turn: str) -> None:
        if turn == "standby" and len(self.joins):
            self._away.set()

    async def _send_away(self) -> None:
        """Somebody else has the slot: whoever waits for changes here would wait without knowing that none come."""
        while True:
            await self._away.wait()
            self._away = trio.Event()
            await self.edge.sockets.drain(SERVICE_RESTART, REASON_DRAIN)

    async def run(self) -> None:
        """Serve until a signal ends it. Raises ConfigError where it cannot listen."""
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(self.edge.run)
            await nursery.start(self._stop_on_signals, nursery.cancel_scope)
            await nursery.start(self._reload_on_hangup)
            for task in (
                self.expiries.run,
                self.joins.run,
                self.rooms.run,
                self.directory.run,
                self.authorizer.run,
                self.store.run,
                self.feed.run,
                self.bus.run,
                self.relay.run,
                self.presence_mirror.run,
                self.guests.run,
                self.fanout.run,
                self.judge.run,
                self.keeper.run,
                self.plan_watch.run,
                self.heartbeat.run,
                self.report.run,
                self.mirror.run,
                self.watch.run,
                self._send_away,
                self.reader.run,
                *self.credentials,
            ):
                nursery.start_soon(task)
            log.info(
                SERVER_STARTED,
                version=__version__,
                listen=[f"{host}:{port}" for host, port in addresses],
                slot=self.config.slot,
            )
        for pool in self.pools:
            await pool.aclose()
        log.info(SERVER_STOPPED)

    async def _stop_on_signals(
        self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            await anext(received)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain, everything)
                await anext(received)
                everything.cancel()

    async def _reload_on_hangup(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as received:
            task_status.started()
            async for _ in received:
                try:
                    self.reload.commit(await trio.to_thread.run_sync(self.reload.prepare))
                except ConfigError as error:
                    refused(error)
                else:
                    self.config = self.reload.config

    def _steps(self) -> list[Step]:
        """What a reload can change, and how."""
        started = self.config

        def keys(config: Config) -> Commit:
            config = msgspec.structs.replace(config, listen=started.listen, jwks=started.jwks)
            check(config)
            opened = "" if config.has_keys else OPEN_ROLE
            parts = config.jwt_secret, ApiKeys.parse(config.api_keys), opened, parse_required(config.jwt_claims)

            def commit() -> None:
                self.verifier.rekey(*parts)
                self.verifier.on_unknown_key()  # look at the key set, too

            return commit

        def origins(config: Config) -> Commit:
            return partial(self.origins.become, Origins(config.allowed_origins))

        def limits(config: Config) -> Commit:
            parse_networks(config.trusted_proxies)
            edge = EdgeLimits.of(config)

            def commit() -> None:
                self.gate.relimit(GateLimits.of(config))
                self.admission.limits = session_limits(config)
                self.edge.relimit(edge)
                raise_open_files(edge.max_connections)

            return commit

        def certificate(config: Config) -> Commit:
            if self.tls is None or not config.tls_cert:
                return lambda: None
            if (config.tls_cert, config.tls_key) != (self.config.tls_cert, self.config.tls_key):
                make_context(config.tls_cert, config.tls_key)  # else what is wrong with the files is told by themselves
            return partial(self.tls.move, config.tls_cert, config.tls_key)

        def slot(config: Config) -> Commit:
            def commit() -> None:
                self.reader.poison.policy = config.poison
                self.watch.gauge.own_bytes = config.wal_budget_bytes

            return commit

        def lines(config: Config) -> Commit:
            hidden = Redactor(secrets_of(started) | secrets_of(self.config) | secrets_of(config))
            return partial(logs.configure, config.log_level, config.log_format, redactor=hidden)

        edge_keys = frozenset(EdgeLimits.__struct_fields__) - {"ping_seconds", "idle_seconds"}
        session_keys = {
            "max_channels_per_connection", "max_joins_per_second", "max_presence_calls", "presence_window_seconds",
        }  # fmt: skip
        tls_keys = frozenset({"tls_cert", "tls_key"} if self.tls is not None else ())
        return [
            Step(frozenset({"log_level", "log_format"}), lines),
            Step(frozenset({"jwt_secret", "api_keys", "jwt_claims"}), keys),
            Step(frozenset({"allowed_origins"}), origins),
            Step(edge_keys | session_keys | frozenset(GateLimits.__struct_fields__), limits),
            Step(tls_keys, certificate),
            Step(frozenset({"poison", "wal_budget_bytes", "slot_drop_bytes"}), slot),
        ]

    async def _drain(self, everything: trio.CancelScope) -> None:
        """Changes go on reaching clients while they are sent away."""
        await self.edge.drain()
        everything.cancel()


def main(config: Config, load: Callable[[], Config] | None = None) -> int:
    """Run the daemon until it is told to stop. ``load``: reads the configuration anew, for a reload.

    Returns the exit code; raises ConfigError.
    """
    logs.configure(config.log_level, config.log_format, redactor=Redactor(secrets_of(config)))
    check(config)
    raise_open_files(config.max_connections)
    try:
        daemon = Daemon(config)
        daemon.reload.load = load or daemon.reload.load
        trio.run(daemon.run)
    except BaseExceptionGroup as group:
        for error in _leaves(group):
            if isinstance(error, WalstreamError):
                raise error from group
        raise
    return 0


def check(config: Config) -> None:
    """Whether a daemon may run with it at all. Raises ConfigError."""
    if not config.database_url:
        raise ConfigError("no database", repair="set WALSTREAM_DATABASE_URL")
    if not config.has_keys and not config.is_loopback:
        raise ConfigError(
            f"listen: {config.listen} can be reached from elsewhere, and there is no key to tell clients apart",
            repair="set WALSTREAM_JWT_SECRET, WALSTREAM_JWKS or WALSTREAM_API_KEYS, or listen on 127.0.0.1",
        )


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _verifier(config: Config, key_set: str = "") -> Verifier:
    return Verifier(
        config.jwt_secret,
        key_set,
        ApiKeys.parse(config.api_keys),
        open_role="" if config.has_keys else OPEN_ROLE,
        required=parse_required(config.jwt_claims),
    )
