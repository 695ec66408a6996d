"""The scenarios: what each breaks, and what has to hold nevertheless. One call is one round; judging comes after it.

Numbers are those of the table in docs/reliability.md. What cannot be survived (``may_gap``) has to be told.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from integration.faults import oracles
from integration.faults.definitions import change_definitions
from integration.faults.failpoints import POINTS
from integration.faults.lab import Lab
from integration.faults.large import PASSING, WHOLE, write_a_large_transaction, write_large_rows
from integration.faults.observed import Lost, Timing
from integration.faults.soak import soak, stall
from integration.faults.subscribers import Subscriber
from integration.faults.tap import SLOT
from integration.fixtures.node import eventually
from walstream.shell.supervise import STABLE_SECONDS
from walstream.telemetry.log import CLIENT_BEHIND

Round = Callable[[Lab, random.Random], None]
DISK_BYTES = 4 << 20
NOTICED_SECONDS = 2.0
"""A walsender that was ended is replaced within this."""
SILENT_SECONDS = 20.0
"""A stream that something between has lost is replaced within this, where the server's patience is 6 s."""
TAKE_OVER_SECONDS = 5.0
"""A slot that is free is taken over by a standby, and new events are delivered, within this."""


@dataclass(frozen=True)
class Scenario:
    """``plan``: what differs in the set-up. ``share``: part of the wanted rounds that it gets, at least one;
    0: it runs only when it is named.

    ``own_server``: the server is stopped, or has settings of its own. ``is_timed``: it tells how soon clients are back.
    ``batch``: rounds in one laboratory; the next one begins with a new server and new seeds.
    """

    name: str
    numbers: str
    run: Round
    plan: Mapping[str, Any] = field(default_factory=dict)
    may_gap: bool = False
    own_server: bool = False
    is_timed: bool = False
    share: float = 1.0
    batch: int = 10
    decoders: tuple[str, ...] = ("wal2json", "pgoutput")


# -- the daemon


def kill_the_daemon(lab: Lab, rng: random.Random) -> None:
    """At a random time; and now and then again before it is up."""
    lab.write(rng.uniform(0.2, 1.5))
    lab.kill_daemon()
    if rng.random() < 0.15:
        time.sleep(rng.uniform(0, 1.0))
        lab.kill_daemon()
    lab.until_streaming()


def die_at_a_failpoint(lab: Lab, rng: random.Random) -> None:
    """Each place once, at a random time of passing it."""
    for name in POINTS:
        lab.arm(f"{name}:{1 if name in ('after-confirm', 'in-catch-up') else rng.randint(2, 60)}")
        lab.until_dead()


def suspend_the_daemon(lab: Lab, rng: random.Random) -> None:
    """Stopped and continued: briefly, for more than half of the server's patience, and for more than all of it."""
    for seconds in (0.3, rng.uniform(3.2, 4.5), rng.uniform(6.5, 8.0)):
        with lab.suspended():
            lab.write(seconds)
        lab.write(0.5)
    lab.until_streaming()


def fill_the_disk(lab: Lab, rng: random.Random) -> None:
    """No room for a large transaction in a temporary file: it is read again until there is, and is not confirmed."""
    del rng
    hard = resource.prlimit(lab.daemon.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(lab.daemon.pid, resource.RLIMIT_FSIZE, (DISK_BYTES, hard))
    try:
        lab.database.execute(
            "insert into items (n, v) select n, repeat('x', 1000) from generate_series(1, %s) n",
            (2 * DISK_BYTES // 1000,),
        )
        eventually(lambda: "large transaction" in ready(lab))
        lab.write(1.0)
    finally:
        resource.prlimit(lab.daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
    lab.faults += 1
    lab.until_streaming()


def roll(lab: Lab, rng: random.Random) -> None:
    """Two daemons on one slot are restarted by turns, as for an upgrade; then the one that streams is killed.

    One subscriber stays away all the while, and goes on where it was at a node that has read nothing of that before.
    """
    assert lab.pair is not None
    (away,) = (member for member in lab.subscribers.members if member.name == "away")
    away.is_away = True
    _, standby = lab.pair.in_order()
    begun = time.time()
    lab.pair.end(standby, signal.SIGTERM)
    lab.pair.in_order()
    lost = [member.name for member in _steady(lab) if any(isinstance(entry, Lost) for entry in member.since(begun))]
    lab.complain("P9", [f"{name} lost its connection while the standby restarted" for name in lost])
    for _ in range(2):
        streaming, _ = lab.pair.in_order()
        with streaming.held():
            lab.kills.append(time.time())
            lab.pair.end(streaming, signal.SIGTERM)
            _taken_over(lab, "SIGTERM")
            lab.write(rng.uniform(0, 0.3))
    streaming, _ = lab.pair.in_order()
    lab.kills.append(time.time())
    lab.pair.end(streaming, signal.SIGKILL)
    _taken_over(lab, "SIGKILL")
    lab.faults += 4
    lab.pair.in_order()
    away.is_away = False


def freeze_the_active_one(lab: Lab, rng: random.Random) -> None:
    """Of two daemons on one slot; the other one takes over. Awake again, the first one reads nothing any more."""
    assert lab.pair is not None
    streaming, _ = lab.pair.in_order()
    (patient,) = (member for member in lab.subscribers.members if member.name == "patient")
    patient.is_away = True
    eventually(lambda: not patient.is_subscribed)
    patient.is_away = False
    eventually(lambda: patient.is_subscribed)
    lab.write(rng.uniform(0.2, 1.0))
    with lab.pair.frozen(streaming) as end:
        _taken_over(lab, "SIGSTOP", besides=patient)
        lab.write(rng.uniform(0.2, 1.0))
        awake = time.time()
    eventually(lambda: any(isinstance(entry, Lost) for entry in patient.since(awake)))
    late = itertools.takewhile(lambda entry: not isinstance(entry, Lost), patient.since(awake))
    lab.complain("P9", oracles.reads_nothing_more(list(late), end))
    lab.faults += 1
    lab.pair.in_order()


def _steady(lab: Lab) -> list[Subscriber]:
    """Who comes back with a position, and does not go by itself."""
    return [member for member in lab.subscribers.members
            if member.resumes and not member.restless and not member.is_away]  # fmt: skip


def _taken_over(lab: Lab, how: str, besides: Subscriber | None = None) -> None:
    """The slot has become free in this moment: who resumes has what is committed from now on within seconds."""
    begun = time.monotonic()
    end = int(lab.database.scalar("select (pg_current_wal_insert_lsn() - '0/0')::bigint"))
    eventually(lambda: all(member.newest > end for member in _steady(lab) if member is not besides))
    took = Timing(f"until new events came after {how}", time.monotonic() - begun, TAKE_OVER_SECONDS)
    lab.complain("P9", oracles.good_guest([took]))


# -- the server


def kill_the_server(lab: Lab, rng: random.Random) -> None:
    """Without a goodbye, to everybody in it."""
    lab.write(rng.uniform(0.2, 1.5))
    lab.restart_server(rng.choice(("kill", "kill", "immediate")), away=rng.choice((0.0, 0.0, 1.0)))
    lab.until_streaming()


def stop_the_server(lab: Lab, rng: random.Random) -> None:
    """Fast, at work, with the window unconfirmed; once with a client that does not read. CHECKPOINT, too."""
    lab.write(rng.uniform(0.2, 1.0))
    lab.checkpoint()
    lab.restart_server("fast", away=rng.uniform(0, 0.5))
    lab.until_streaming()
    stalled = lab.subscribers.members[0]
    stalled.reads = False
    lab.write(0.5)
    lab.checkpoint()
    lab.restart_server("fast")
    stalled.reads = True
    lab.until_streaming()


def stop_the_server_at_bad_times(lab: Lab, rng: random.Random) -> None:
    """Fast, and CHECKPOINT, in states in which the daemon has much to read, or cannot say that it has read anything.

    Each is compared with what the server takes when a large transaction is there to be read, and no daemon.
    """
    assert lab.database_proxy is not None
    lab.alone, lab.state = {}, ""
    with lab.supervisor.held():
        lab.kill_daemon()
        _write_much(lab)
        lab.checkpoint()
        lab.restart_server("fast")
    lab.alone = {timing.what: timing.seconds for timing in lab.timings}
    lab.until_streaming()
    states = ("in a large transaction", "suspended", "suspended in a large transaction", "behind a silent proxy")
    for state in rng.sample(states, len(states)):
        lab.state = f"with the daemon {state}"
        with lab.suspended() if "suspended" in state else contextlib.nullcontext():
            if "large" in state:
                _write_much(lab)
            if "proxy" in state:
                lab.database_proxy.half_open(lambda: rng.random() < 0.5)
            lab.checkpoint()
            lab.restart_server("fast")
        lab.until_streaming()
        lab.write(0.5)


def _write_much(lab: Lab) -> None:
    """More than the proxy and the kernel hold, in rows that are few."""
    lab.database.execute("insert into items (n, v) select n, repeat('z', 200000) from generate_series(1, 50) n")


def let_the_server_flap(lab: Lab, rng: random.Random) -> None:
    """Up and down, faster than anybody can settle. The daemon may not fill its log meanwhile."""
    before = lab.daemon.log_path.stat().st_size
    for _ in range(5):
        lab.restart_server(rng.choice(("fast", "immediate", "kill")), away=rng.uniform(0, 1.0))
        time.sleep(rng.uniform(0.2, 1.5))
    lab.until_streaming()
    written = lab.daemon.log_path.stat().st_size - before
    lab.complain("log", [f"{written} bytes of log for five restarts"] if written > 200_000 else [])


def end_the_walsender(lab: Lab, rng: random.Random) -> None:
    """As an administrator does. After a while of peace there is another one at once; then pauses may grow."""
    lab.write(STABLE_SECONDS + 1)
    lab.end_walsender()
    begun = time.monotonic()
    lab.until_streaming()
    lab.timings.append(Timing("another walsender", time.monotonic() - begun, NOTICED_SECONDS))
    for _ in range(2):
        lab.write(rng.uniform(0.1, 0.8))
        lab.end_walsender()
        lab.until_streaming()


def kill_everything(lab: Lab, rng: random.Random) -> None:
    """Two kills of the daemon and one of the server, at times that know nothing of each other.

    So the daemon dies while the server is away or comes back, too, and the server while the daemon begins. Now and then
    a fast stop and a CHECKPOINT follow, timed.
    """
    server, *daemons = (rng.uniform(0.1, 4.0) for _ in range(3))
    away = rng.choice((0.0, 0.0, rng.uniform(0.1, 2.0)))
    asked, polite = rng.random() < 0.5, rng.random() < 0.1
    begun, deaths = time.monotonic(), len(lab.supervisor.deaths)
    with ThreadPoolExecutor(1, "server") as pool:

        def kill_the_other() -> None:
            time.sleep(server)
            lab.restart_server("kill", away)

        killed = pool.submit(kill_the_other)
        for moment in sorted(daemons):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            lab.kill_daemon()
        killed.result()
    lab.until_streaming()
    lab.write(rng.uniform(0.0, 1.0))
    if asked:
        lab.checkpoint()
    if polite:
        lab.restart_server("fast")
        lab.until_streaming()
    died = len(lab.supervisor.deaths) - deaths - len(daemons)
    lab.complain("deaths", [f"the daemon died {died} times by itself"] if died else [])


# -- the network


def cut_the_database_off(lab: Lab, rng: random.Random) -> None:
    """Late, silent and reset connections between the daemon and the server."""
    proxy = lab.database_proxy
    assert proxy is not None
    proxy.delay = 0.3
    lab.write(2.0)
    proxy.delay = 0.0
    lab.write(0.5)
    proxy.reset()
    lab.write(rng.uniform(0.2, 1.0))
    proxy.is_hole = True
    lab.write(rng.uniform(1.0, 8.0))
    proxy.is_hole = False
    lab.write(0.5)
    lab.faults += 3
    lab.until_streaming()


def answer_for_the_database(lab: Lab, rng: random.Random) -> None:
    """What stands between takes what both sides send, and is silent; of some connections the server's side is gone.

    Connections to come pass.
    """
    proxy = lab.database_proxy
    assert proxy is not None
    lab.write(rng.uniform(0.2, 1.0))
    before = _walsender(lab)
    begun = time.monotonic()
    proxy.half_open(lambda: rng.random() < 0.5)
    eventually(lambda: _walsender(lab) not in (None, before), seconds=60)
    lab.timings.append(Timing("another stream", time.monotonic() - begun, SILENT_SECONDS))
    eventually(lambda: '"ready"' in ready(lab))
    lab.faults += 1


def _walsender(lab: Lab) -> int | None:
    """PostgreSQL's process that streams from the daemon's slot."""
    rows = lab.database.query("select active_pid from pg_replication_slots where slot_name = %s", (lab.daemon.slot,))
    return rows[0][0] if rows else None


def cut_the_clients_off(lab: Lab, rng: random.Random) -> None:
    """The same between the clients and the daemon, and half-open: the client hears nothing more, and is not told."""
    proxy = lab.client_proxy
    assert proxy is not None
    proxy.delay = 0.3
    lab.write(1.5)
    proxy.delay = 0.0
    for _ in range(3):
        proxy.reset()
        lab.write(rng.uniform(0.1, 0.6))
    proxy.is_hole = True
    lab.write(rng.uniform(0.5, 3.0))
    proxy.is_hole = False
    lab.write(0.3)
    proxy.half_open()
    lab.write(1.0)
    lab.faults += 6


def stall_a_client(lab: Lab, rng: random.Random) -> None:
    """One that does not read for a while, with an outbox that is too small for it; it gets everything all the same."""
    before = said(lab, CLIENT_BEHIND)
    stall(lab, rng.uniform(2.0, 4.0), rows=20_000)
    lab.complain("stall", [] if said(lab, CLIENT_BEHIND) > before else ["nobody fell behind"])
    lab.faults += 1


def said(lab: Lab, event: str) -> int:
    """How often the daemon has logged an event."""
    return lab.daemon.log_path.read_text(encoding="utf-8", errors="replace").count(f'"{event}"')


# -- the slot


def occupy_the_slot(lab: Lab, rng: random.Random) -> None:
    """Somebody else streams from our slot while the daemon is down: it waits, names the process, and takes over."""
    with lab.supervisor.held():
        lab.kill_daemon()
        eventually(lambda: not lab.is_streaming())
        options = ("-o", "format-version=2") if lab.plan.decoder == "wal2json" else (
            "-o", "proto_version=1", "-o", "publication_names=walstream_all,walstream_insert",
        )  # fmt: skip
        other = subprocess.Popen(
            [str(lab.cluster.binaries.bin_dir / "pg_recvlogical"), "--start", "--slot", lab.daemon.slot, "--dbname",
             lab.database.dsn, "--no-loop", "--file", os.devnull, "--status-interval", "0", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            eventually(lab.is_streaming)
            # Stopped, it confirms nothing: a dead process of which the server does not know yet.
            other.send_signal(signal.SIGSTOP)
        except BaseException:
            other.kill()
            raise
    try:
        pid = _walsender(lab)
        eventually(lambda: f"process {pid}" in ready(lab))
        lab.write(rng.uniform(0.5, 1.5))
    finally:
        other.kill()
        other.wait()
    lab.until_streaming()


def ready(lab: Lab) -> str:
    """What ``/ready`` says; nothing while there is nobody to say it."""
    try:
        return lab.daemon.get("/ready")[1].decode()
    except OSError:
        return ""


def drop_the_slot(lab: Lab, rng: random.Random) -> None:
    """Behind the daemon's back, while it is stopped or down; changes are committed before there is another."""
    if rng.random() < 0.5:
        with lab.suspended():
            lab.end_walsender()
            _drop(lab)
            lab.write(0.5)
    else:
        with lab.supervisor.held():
            lab.kill_daemon()
            _drop(lab)
            lab.write(0.5)
    lab.until_streaming()
    lab.write(0.5)


def recreate_the_slot(lab: Lab, rng: random.Random) -> None:
    """Dropped and made again by somebody, under the same name: nothing shows it but where it begins."""
    with lab.supervisor.held():
        lab.kill_daemon()
        _drop(lab)
        lab.write(rng.uniform(0.3, 1.0))
        lab.database.execute("select pg_create_logical_replication_slot(%s, %s)", (lab.daemon.slot, lab.plan.decoder))
    lab.until_streaming()
    lab.write(0.5)


def lose_the_slot(lab: Lab, rng: random.Random) -> None:
    """The server gives the slot up while the daemon is down, since it keeps too much WAL back."""
    del rng
    lab.database.execute("create table if not exists public.ballast (id bigserial primary key, v text)")
    with lab.supervisor.held():
        lab.kill_daemon()
        deadline = time.monotonic() + 60
        while retained(lab, lab.daemon.slot) is not None:
            lab.database.execute("insert into ballast (v) select repeat('x', 8000) from generate_series(1, 800)")
            lab.database.execute("truncate ballast")
            lab.database.execute("select pg_switch_wal()")
            lab.checkpoint()
            while (retained(lab, SLOT) or 0) > 48 << 20:  # the tap's slot has to stay
                time.sleep(0.1)
                lab.checkpoint()
            assert time.monotonic() < deadline, "the slot is not lost"
    lab.until_streaming()
    lab.write(0.5)


def retained(lab: Lab, slot: str) -> int | None:
    """Bytes of WAL that a slot keeps back; None if it is lost."""
    (status, kept) = lab.database.query(
        "select wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint from pg_replication_slots"
        " where slot_name = %s",
        (slot,),
    )[0]
    return None if status == "lost" else kept


def _drop(lab: Lab) -> None:
    """The daemon is stopped or dead. A stream that it had just begun has the slot for as long as the server waits."""

    def dropped() -> bool:
        try:
            lab.database.execute("select pg_drop_replication_slot(%s)", (lab.daemon.slot,))
        except psycopg2.errors.ObjectInUse:
            lab.database.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s",
                (lab.daemon.slot,),
            )
            return False
        return True

    eventually(dropped)


# -- snapshots

SNAPSHOT_ROWS = 20
ROWS_TO_SHOW = 4000
STOPS_WITHIN = 50
"""Pages. All others, five megabytes and more, are more than the network takes in for a client that does not read."""


def break_snapshots(lab: Lab, rng: random.Random, *, with_server: bool = True) -> None:
    """Faults in the midst of pages, while writers go on: the daemon dies, a connection ends, the server stops."""
    if not lab.database.scalar("select count(*) > %s from public.items", (ROWS_TO_SHOW // 2,)):
        lab.database.execute(
            "insert into public.items (n, v) select n, repeat('x', 1800) from generate_series(1, %s) n", (ROWS_TO_SHOW,)
        )
    faults: list[Callable[[], object]] = [lab.kill_daemon, lambda: _end_snapshots(lab), lab.end_walsender]
    if with_server:
        faults += [lambda: lab.restart_server("kill"), lambda: lab.restart_server("immediate")]
    for act in rng.sample(faults, 3):
        whole = [folder.snapshots for folder in lab.folders]
        stopped = rng.choice(lab.folders)
        for folder in lab.folders:
            folder.begin_anew(stop_at=rng.randint(1, STOPS_WITHIN) if folder is stopped else 0)
        eventually(lambda: not stopped.reads)  # noqa: B023 - called at once
        act()
        stopped.reads = True
        lab.until_streaming()
        eventually(lambda: all(now.snapshots > then for now, then in zip(lab.folders, whole, strict=True)))  # noqa: B023
        lab.write(rng.uniform(0, 0.5))


def _end_snapshots(lab: Lab) -> None:
    lab.database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'walstream (snapshots)'"
    )
    lab.faults += 1


def mix(lab: Lab, rng: random.Random) -> None:
    """Three faults of different kinds, shortly after each other, under more load."""
    faults: list[Callable[[], None]] = [
        lab.kill_daemon, lab.end_walsender, lambda: lab.restart_server("kill"), lambda: lab.restart_server("fast"),
    ]  # fmt: skip
    for act in rng.sample(faults, 3):
        act()
        lab.write(rng.uniform(0.1, 2.0))
    lab.until_streaming()


SCENARIOS = (
    Scenario("daemon killed", "1", kill_the_daemon, is_timed=True),
    Scenario("daemon killed at a failpoint", "2", die_at_a_failpoint,
             {"environ": {"WALSTREAM_HISTORY_SECONDS": "8s"}}, share=0.1),
    Scenario("daemon suspended", "7, 8", suspend_the_daemon, share=0.1),
    Scenario("rolling restart", "P9", roll, {"is_pair": True}, share=0.25),
    Scenario("active daemon frozen", "P9", freeze_the_active_one, {"is_pair": True}, share=0.1),
    Scenario("disk full", "32", fill_the_disk,
             {"environ": {"WALSTREAM_HISTORY_BYTES": "4MiB"}, "keeps_all": False}, share=0.1),
    Scenario("mixed", "35", mix, {"rate": 1000.0}, own_server=True, share=0.5),
    Scenario("server killed", "3", kill_the_server, own_server=True, share=0.5),
    Scenario("everything killed", "1, 3", kill_everything,
             {"environ": {"WALSTREAM_HISTORY_SECONDS": "20s"}}, own_server=True, share=0.25),
    Scenario("server stopped", "4, 5", stop_the_server, own_server=True, share=0.25),
    Scenario("server stopped at bad times", "4", stop_the_server_at_bad_times,
             {"through_proxy": True, "settings": {"wal_sender_timeout": "4s"}}, own_server=True, share=0.1),
    Scenario("server flapping", "34", let_the_server_flap, own_server=True, share=0.1),
    Scenario("walsender ended", "6", end_the_walsender, share=0.1),
    Scenario("database behind a bad network", "9", cut_the_database_off, {"through_proxy": True}, share=0.1),
    Scenario("database behind a silent proxy", "9", answer_for_the_database, {"through_proxy": True}, share=0.1),
    Scenario("clients behind a bad network", "9", cut_the_clients_off, {"through_proxy": True}, share=0.1),
    Scenario("client stalled", "28", stall_a_client,
             {"environ": {"WALSTREAM_OUTBOX_BYTES": "2MiB"}, "rate": 1000.0}, share=0.1),
    Scenario("slot in other hands", "10", occupy_the_slot, share=0.1),
    Scenario("slot dropped", "11", drop_the_slot, may_gap=True, share=0.1),
    Scenario("slot recreated", "11", recreate_the_slot, may_gap=True, share=0.1),
    Scenario("slot lost", "12", lose_the_slot,
             {"settings": {"max_slot_wal_keep_size": "96MB", "min_wal_size": "32MB", "max_wal_size": "64MB"}},
             may_gap=True, own_server=True, share=0.1),
    Scenario("large transaction", "16", write_a_large_transaction, PASSING, share=0.1),
    Scenario("large row", "17", write_large_rows, WHOLE, share=0.1),
    Scenario("snapshots", "P1", break_snapshots,
             {"folds": True, "few": True, "environ": {"WALSTREAM_SNAPSHOT_ROWS": f"{SNAPSHOT_ROWS}"}},
             own_server=True, share=0.25),
    Scenario("definitions changed", "25", change_definitions, share=0.1),
    Scenario("soak", "soak", soak,
             {"is_mixed": True, "through_proxy": True, "few": True, "environ": {"WALSTREAM_OUTBOX_BYTES": "2MiB"}},
             own_server=True, share=0, batch=1000),
)  # fmt: skip
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
