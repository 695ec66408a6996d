"""The laboratory: a server, a daemon under supervision, writers, the tap and subscribers, and what judges them.

Scenarios break parts of it and then let it ``settle``: everybody must have everything, and the oracles are asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg2

from integration.faults import oracles, workload
from integration.faults.balancer import Balancer
from integration.faults.chatter import Chatter
from integration.faults.failpoints import VARIABLE
from integration.faults.folding import Folder, stored
from integration.faults.lives import Lives
from integration.faults.observed import Committed, Got, Log, Lost, Timing
from integration.faults.proxy import Proxy
from integration.faults.sampler import Sampler
from integration.faults.subscribers import Subscriber, Subscribers
from integration.faults.supervisor import Pair, Supervisor
from integration.faults.tap import Tap
from integration.fixtures.daemon import Daemon, free_port
from integration.fixtures.node import eventually
from integration.fixtures.postgres import (
    TestDatabase,
    fresh_cluster,
    fresh_database,
    migrate,
    newest_server,
    wal2json_server,
)
from walstream.shell.commands.private_cluster import Cluster

WINDOW_SECONDS = 60.0
SETTLE_SECONDS = 60.0
SETTINGS = {"wal_sender_timeout": "6s", "max_wal_size": "4GB"}
ENVIRON = {
    "WALSTREAM_HISTORY_SECONDS": f"{WINDOW_SECONDS:g}s",
    "WALSTREAM_HISTORY_WAL_BYTES": "64GiB",  # out of reach: P4 is told by age alone
    "WALSTREAM_HISTORY_BYTES": "256MiB",
    "WALSTREAM_HEARTBEAT_SECONDS": "1s",
    "WALSTREAM_DRAIN_SECONDS": "1s",
    "WALSTREAM_MAX_JOINS_PER_SECOND": "0",
}
FAST_STOP_SECONDS = 5.0
CHECKPOINT_SECONDS = 1.0
RECONNECT_SECONDS = 3.0


@dataclass
class Plan:
    """How a laboratory is set up. ``settings``: of the server. ``environ``: of the daemon.

    ``few``: two subscribers only. ``folds``: clients with snapshots, too. ``scale``: how large a large transaction is,
    in ten thousands of rows, and a large row, in millions of bytes; subscribers leave both to a counter.
    ``keeps_all``: age alone bounds the window, so that P4 can be told.
    ``is_newest``: an own server is the newest of this machine, with pgoutput only, instead of the newest with wal2json.
    ``is_pair``: a second daemon on the same slot, and clients come through a balancer that asks both whether they are
    ready. ``through_proxy``: the daemon reaches the server, and clients the daemon, through cutting proxies.
    ``is_mixed``: there are broadcasts and presence, too.
    """

    seed: int = 1
    decoder: str = "wal2json"
    rate: float = 200.0
    writers: int = 3
    settings: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    faults: str = ""
    through_proxy: bool = False
    is_pair: bool = False
    is_mixed: bool = False
    few: bool = False
    folds: bool = False
    keeps_all: bool = True
    is_newest: bool = False
    scale: int = 0

    @property
    def window_seconds(self) -> float:
        """The age of the daemon's window."""
        return float({**ENVIRON, **self.environ}["WALSTREAM_HISTORY_SECONDS"].removesuffix("s"))


@dataclass
class Findings:
    """What the oracles said, by name: an empty list is a promise kept. Counters are for the report."""

    complaints: dict[str, list[str]] = field(default_factory=dict)
    changes: int = 0
    delivered: int = 0
    faults: int = 0
    pauses: list[float] = field(default_factory=list)
    peak: int = 0

    def add(self, other: Findings) -> None:
        """Take over what another look has found."""
        for oracle, found in other.complaints.items():
            self.complaints.setdefault(oracle, []).extend(found)
        self.changes += other.changes
        self.delivered += other.delivered
        self.faults += other.faults
        self.peak = max(self.peak, other.peak)
        self.pauses += other.pauses

    @property
    def all(self) -> list[str]:
        """Every complaint, with its oracle."""
        return [f"{name}: {text}" for name, found in self.complaints.items() for text in found]


class Lab:
    """All parts, running. Made by ``laboratory``."""

    def __init__(self, plan: Plan, database: TestDatabase, daemon: Daemon, tap: Tap) -> None:
        self.plan = plan
        self.database = database
        self.cluster: Cluster = database.cluster
        self.daemon = daemon
        self.tap = tap
        self.supervisor = Supervisor(daemon)
        self.sampler = Sampler(database, daemon.slot)
        self.lives = Lives(daemon)
        self.writers = workload.Workload(database, seed=plan.seed, writers=plan.writers, rate=plan.rate)
        self.timings: list[Timing] = []
        self.alone: dict[str, float] = {}
        """Seconds that the server takes for something anyway; only what is more counts."""
        self.state = ""
        """What the daemon is at, for complaints about seconds."""
        self.kills: list[float] = []
        self.faults = 0
        self._more: dict[str, list[str]] = {}
        self._armed = 0
        self._settled = 0
        self._past: list[Committed] = []  # without their events: what P4 asks about, which is older than a round
        self.database_proxy: Proxy | None = None
        self.client_proxy: Proxy | None = None
        self.pair: Pair | None = None
        self.subscribers: Subscribers

    # -- faults

    def kill_daemon(self) -> None:
        """SIGKILL; the supervisor starts it again. Waits until it is dead."""
        eventually(lambda: self.daemon.is_running)  # one that has just died is about to begin again
        deaths = len(self.supervisor.deaths)
        self.kills.append(time.time())
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.daemon.pid, signal.SIGKILL)
        eventually(lambda: len(self.supervisor.deaths) > deaths)
        self.faults += 1

    def arm(self, fault: str) -> None:
        """Have the daemon begin again with a failpoint or a bug in it; until it reads."""
        self.supervisor.next_fault = fault
        self.kill_daemon()
        self._armed = len(self.supervisor.deaths)
        self.until_streaming()

    def until_dead(self, seconds: float = 30.0) -> None:
        """Wait for a failpoint to be reached, and for the daemon that comes after it."""
        eventually(lambda: len(self.supervisor.deaths) > self._armed, seconds=seconds)
        self.kills.append(self.supervisor.deaths[-1])
        self.faults += 1
        self.until_streaming()

    def stop_server(self, how: str) -> None:
        """``fast``, ``immediate`` or ``kill``. A fast stop is timed."""
        self.database.close()
        begun = time.monotonic()
        if how == "kill":
            self.cluster.kill()
        else:
            self.cluster.stop("fast" if how == "fast" else "immediate", timeout=40)
        if how == "fast":
            self._took("a fast stop of the server", begun, FAST_STOP_SECONDS)
        self.faults += 1

    def restart_server(self, how: str, away: float = 0.0) -> None:
        """Stop it, and start it after ``away`` seconds."""
        self.stop_server(how)
        time.sleep(away)
        self.cluster.start()

    def checkpoint(self) -> None:
        """A CHECKPOINT, timed."""
        begun = time.monotonic()
        self.database.execute("checkpoint")
        self._took("CHECKPOINT", begun, CHECKPOINT_SECONDS)

    def _took(self, what: str, begun: float, bound: float) -> None:
        seconds = time.monotonic() - begun - self.alone.get(what, 0.0)
        self.timings.append(Timing(f"{what} {self.state}".strip(), seconds, bound))

    def end_walsender(self) -> None:
        """pg_terminate_backend of whoever streams for the daemon."""
        self.database.execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = %s and active",
            (self.daemon.slot,),
        )
        self.faults += 1

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        os.kill(self.daemon.pid, signal.SIGSTOP)
        self.faults += 1
        try:
            yield
        finally:
            os.kill(self.daemon.pid, signal.SIGCONT)

    # -- waiting

    def is_streaming(self) -> bool:
        """Whether somebody streams from the daemon's slot."""
        return self.database.query(
            "select active from pg_replication_slots where slot_name = %s", (self.daemon.slot,)
        ) == [(True,)]

    def until_streaming(self) -> None:
        """The server is there, and the daemon reads from it."""
        eventually(lambda: self.survive(self.is_streaming))

    def survive(self, ask: Callable[[], object]) -> object:
        """The answer, None while the server is away."""
        try:
            return ask()
        except psycopg2.Error:
            self.database.close()
            return None

    def write(self, seconds: float) -> None:
        """Let the writers work for a while."""
        time.sleep(seconds)
        self.check()

    def check(self) -> None:
        """Fails if a part of the laboratory itself is broken."""
        for part in (self.writers, self.subscribers, self.tap, self.supervisor, self.sampler, self.lives):
            part.check()

    # -- judging

    def complain(self, oracle: str, found: Sequence[str]) -> None:
        """What a scenario itself has found; told with the next ``settle``."""
        self._more.setdefault(oracle, []).extend(found)

    def settle(self, *, may_gap: bool = False) -> Findings:
        """Pause the writers, wait until everybody has everything, and ask the oracles. Then all logs begin anew."""
        with self.writers.paused():
            end = self._last_words()
            behind = self._wait_for(end)
            logs = self.subscribers.take(end)
            truth = [transaction for transaction in self.tap.committed() if transaction.end <= end]
            unlike = self._compare_folds()
        self._past += [each._replace(events=()) for each in truth if each.end > self._settled]
        findings = Findings(
            self._judge(logs, truth, behind, may_gap=may_gap) | unlike,
            changes=sum(len(transaction.events) for transaction in truth if transaction.end > self._settled),
            delivered=sum(isinstance(entry, Got) for log in logs for entry in log.entries),
            faults=self.faults,
            pauses=self._pauses(logs),
            peak=self.daemon.peak_bytes,
        )
        until = time.time() - self.plan.window_seconds - 1
        self._past = [each for each in self._past if each.at >= until]
        self.faults = 0
        self.kills.clear()
        self.timings.clear()
        self._more = {}
        # Who joined while all grew quiet may yet get what is a moment old: that stays known for a round.
        self.tap.forget(self._settled)
        self._settled = end
        return findings

    def _last_words(self) -> int:
        """Commit end of a last transaction, once the tap has it."""
        eventually(lambda: self.survive(lambda: self.database.scalar("select true")))
        wal_end = workload.last_words(self.database)

        def has_seen() -> bool:
            self.database.execute("select pg_logical_emit_message(true, 'laboratory', '')")
            return self.tap.newest >= wal_end

        eventually(has_seen)
        return self.tap.committed()[-1].end

    def _wait_for(self, end: int) -> list[str]:
        """Until all subscribers have what ends at ``end``; the names of who has not."""
        deadline = time.monotonic() + SETTLE_SECONDS
        members = self.subscribers.members
        while time.monotonic() < deadline:
            self.check()
            behind = [member.name for member in members if not member.has(end)]
            if not behind:
                time.sleep(0.3)  # what comes twice may come a little later
                return []
            if (
                self.survive(self.is_streaming)
                and all(member.is_subscribed for member in members)
                and not self._is_moving(end)
            ):
                break
            time.sleep(0.05)
        return behind

    def _is_moving(self, end: int) -> bool:
        """Whether those who are behind get anything within ten seconds."""
        before = [member.position for member in self.subscribers.members]
        for _ in range(100):
            time.sleep(0.1)
            if before != [member.position for member in self.subscribers.members]:
                return True
            if all(member.has(end) for member in self.subscribers.members):
                return True
        return False

    def _judge(
        self, logs: Sequence[Log], truth: Sequence[Committed], behind: Sequence[str], *, may_gap: bool
    ) -> dict[str, list[str]]:
        gone = [
            f"{log.name} did not come back"
            for log in logs
            if log.name in behind and (not log.entries or isinstance(log.entries[-1], Lost))
        ]
        samples = self.sampler.take()
        if may_gap or not self.plan.keeps_all:
            samples = []  # a slot that is made anew begins above the old window
        return {
            "P1": gone + oracles.exactly_once_in_order(logs, truth, may_gap=may_gap),
            "P2": oracles.whole_transactions(logs, truth),
            "P3": oracles.no_silent_gap(logs, truth),
            "P4": oracles.confirmed_behind_the_window(samples, self._past, self.plan.window_seconds),
            "P8": oracles.good_guest(self.timings),
            **self._more,
        }

    @property
    def folders(self) -> list[Folder]:
        """Who folds snapshots and changes."""
        return [member for member in self.subscribers.members if isinstance(member, Folder)]

    def _compare_folds(self) -> dict[str, list[str]]:
        """Nobody writes: what folders hold is their tables, once they have what was written last."""
        if not self.folders:
            return {}
        workload.last_words(self.database)
        newest = ("items", self.database.scalar("select max(id) from public.items"))
        eventually(lambda: all(folder.rests and newest in folder.rows for folder in self.folders))
        found: list[str] = []
        for folder in self.folders:
            found += folder.compare(stored(self.database, folder.tables or ()))
        return {"fold": found}

    def _pauses(self, logs: Sequence[Log]) -> list[float]:
        """From each kill of the daemon to the first change that a resuming subscriber gets on a new connection."""
        found = []
        members = (member for member in self.subscribers.members if not isinstance(member, Folder))
        steady = {member.name for member in members if member.resumes and not member.restless}
        for log in logs:
            if log.name not in steady:
                continue
            for number, kill in enumerate(self.kills):
                until = self.kills[number + 1] if number + 1 < len(self.kills) else float("inf")
                lost = next((entry.at for entry in log.entries if isinstance(entry, Lost) and entry.at >= kill), until)
                first = next((entry.at for entry in log.entries if isinstance(entry, Got) and entry.at > lost), until)
                if first < until:
                    found.append(first - kill)
        return found


def _end(daemon: Daemon) -> None:
    if daemon.is_running:
        daemon.kill()


def _everybody(plan: Plan, url: str, dsn: str) -> list[Subscriber]:
    make = partial(Subscriber, url=url, dsn=dsn)

    if plan.scale:
        tables = ("accounts", "docs", "audit")
        return [make("resuming", resumes=True, tables=tables), make("plain", resumes=False, tables=tables)]
    few = [make("resuming", resumes=True), make("plain", resumes=False)]
    if plan.folds:
        few += [Folder("folding", url, ("items",)), Folder("folding all", url, ("accounts", "docs", "items"))]
    if plan.few:
        return few
    if plan.is_pair:
        few += [make("away", resumes=True), make("patient", resumes=True, patience=60.0)]
    return [
        *few,
        make("resuming, some tables", resumes=True, tables=("accounts", "docs", "audit")),
        make("resuming, one table", resumes=True, tables=("items",)),
        make("restless", resumes=True, restless=1.5),
    ]


def _daemon(stack: contextlib.ExitStack, plan: Plan, where: str, directory: Path, port: int) -> Daemon:
    environ = {**ENVIRON, "WALSTREAM_DECODER": plan.decoder, VARIABLE: plan.faults, **plan.environ}
    daemon = Daemon(where, directory, environ, port)
    daemon.command[-2:] = ["integration.faults.failpoints"]
    stack.callback(_end, daemon)
    return daemon


def _add_another(stack: contextlib.ExitStack, lab: Lab, where: str, directory: Path) -> int:
    """A second daemon on the same slot, supervised, and a balancer in front of both; the balancer's port."""
    daemon = _daemon(stack, lab.plan, where, directory, free_port())
    daemon.environ["WALSTREAM_SLOT"] = lab.daemon.slot
    daemon.start(wait="/live")
    lab.pair = Pair(lab.database, (lab.supervisor, stack.enter_context(Supervisor(daemon))))
    return stack.enter_context(Balancer((lab.daemon, daemon))).port


@contextlib.contextmanager
def laboratory(directory: Path, plan: Plan, cluster: Cluster | None = None) -> Iterator[Lab]:
    """A laboratory at work: everybody is subscribed, and the writers write. ``cluster``: a server that others use, too.

    With such a server nothing may be stopped, and ``plan.settings`` mean nothing.
    """
    with contextlib.ExitStack() as stack:
        if cluster is None:
            binaries = newest_server() if plan.is_newest else wal2json_server()
            cluster = stack.enter_context(fresh_cluster(directory / "server", {**SETTINGS, **plan.settings}, binaries))
        database = stack.enter_context(fresh_database(cluster))
        migrate(database.dsn)
        workload.prepare(database)
        tap = stack.enter_context(Tap(database, directory / "tap.jsonl"))
        where, proxies, port = database.dsn, [], free_port()
        if plan.through_proxy:
            proxies = [Proxy(cluster.socket_dir / ".s.PGSQL.5432"), Proxy(port)]
            where = f"host=127.0.0.1 port={proxies[0].port} dbname={database.name} user=postgres"
        for proxy in proxies:
            stack.enter_context(proxy)
        # Of the daemon's own stream, whoever the server is: usually a status update every other second.
        patience = {**SETTINGS, **plan.settings}["wal_sender_timeout"]
        where += f" options='-c wal_sender_timeout={patience}'"
        daemon = _daemon(stack, plan, where, directory, port)
        daemon.start()
        lab = Lab(plan, database, daemon, tap)
        url = daemon.websocket_url
        if plan.is_pair:
            url = url.replace(str(port), str(_add_another(stack, lab, where, directory)))
        if proxies:
            lab.database_proxy, lab.client_proxy = proxies
            url = url.replace(str(port), str(proxies[1].port))
        lab.subscribers = Subscribers(*_everybody(plan, url, database.dsn))
        for part in (lab.supervisor, lab.sampler, lab.lives, lab.subscribers):
            stack.enter_context(part)
        if plan.is_mixed:
            stack.enter_context(Chatter(daemon, database, url, plan.seed))
        eventually(lambda: all(member.is_subscribed for member in lab.subscribers.members))
        stack.enter_context(lab.writers)
        eventually(lambda: all(member.newest for member in lab.subscribers.members))  # who has a position may resume
        yield lab
