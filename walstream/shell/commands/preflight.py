"""Whether a server, a role and a slot can serve walstream: facts are read here, and judged without asking again.

Each finding has a stable code, a cause and the statement that mends it. Tables are judged in ``preflight_tables``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.capture import quote_identifier as quoted
from walstream.history.budget import Budget
from walstream.shell.commands import migrate
from walstream.shell.commands.migrate import SchemaState
from walstream.shell.database import postgres, roles, slots
from walstream.shell.database.open_transactions import OpenTransaction
from walstream.shell.database.reports import Finding, Severity
from walstream.shell.database.rows import only
from walstream.shell.database.slots import Slot

OLDEST_VERSION: Final = 140000
PROBE_SECONDS: Final = 2
APPLICATION_NAME: Final = "walstream"
"""What the application names of all our connections begin with."""

MIB: Final = 1024 * 1024
_STANDBY_TOKEN: Final = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_][\w$]*)(?=\s*\d*\s*\()|([A-Za-z_][\w$]*|\*)')

PluginState = Literal["usable", "missing", "refused", "unknown"]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What one question tells of the server, the database and the role. Sizes in bytes, -1 for unlimited."""

    version: int = 170000
    user: str = "postgres"
    database: str = "postgres"
    encoding: str = "UTF8"
    in_recovery: bool = False
    may_replicate: bool = True
    wal_level: str = "logical"
    wal_senders: int = 0
    max_wal_senders: int = 10
    slots: int = 0
    max_replication_slots: int = 10
    max_slot_wal_bytes: int = -1
    idle_slot_timeout: str = "0"
    synchronous_commit: str = "on"
    wal_writer_delay: str = "200"  # ms
    synchronous_standby_names: str = ""
    synchronous_walsenders: tuple[str, ...] = ()  # application names of ours that commits wait for
    physical_slots: tuple[str, ...] = ()
    backend_pid: int = 1
    promised_pid: int = 1  # what the connection was told at its start
    client_roles: Mapping[str, bool] = {}  # those that exist, and whether we may act as them


class Probe(NamedTuple):
    """Whether an output plugin may be used by this role. ``detail``: the server's words."""

    plugin: str
    state: PluginState
    detail: str = ""


_SERVER = """
select pg_catalog.current_setting('server_version_num')::integer,
       current_user::text,
       pg_catalog.current_database()::text,
       pg_catalog.getdatabaseencoding()::text,
       pg_catalog.pg_is_in_recovery(),
       r.rolsuper or r.rolreplication or exists (
           select from pg_catalog.pg_roles g
            where g.rolname = 'rds_replication' and pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE')
       ),
       (select count(*) from pg_catalog.pg_stat_replication)::integer,
       (select count(*) from pg_catalog.pg_replication_slots)::integer,
       array(select s.slot_name::text from pg_catalog.pg_replication_slots s where s.slot_type = 'physical'),
       array(select distinct w.application_name from pg_catalog.pg_stat_replication w
              where w.application_name like %(ours)s and w.sync_state in ('sync', 'quorum', 'potential')),
       pg_catalog.pg_backend_pid()
  from pg_catalog.pg_roles r
 where r.rolname = current_user
"""
_SETTINGS = """
select name, setting from pg_catalog.pg_settings
 where name in ('wal_level', 'max_wal_senders', 'max_replication_slots', 'max_slot_wal_keep_size',
                'idle_replication_slot_timeout', 'synchronous_commit', 'wal_writer_delay', 'synchronous_standby_names')
"""


def read_server(connection: Connection) -> Server:
    """Ask the server about itself; any role may. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_SERVER, {"ours": f"{APPLICATION_NAME}%"})
        (
            version, user, database, encoding, recovery, replicate, senders, slot_count, physical, synchronous, pid
        ) = only(cursor)  # fmt: skip
        cursor.execute(_SETTINGS)
        settings = dict(cursor.fetchall())
        cursor.execute(
            "select rolname::text from pg_catalog.pg_roles where rolname = any(%s)", (list(roles.CLIENT_ROLES),)
        )
        present = [name for (name,) in cursor.fetchall()]
        acting = {name: roles.may_act_as(cursor, name) for name in present}
    keep = int(settings.get("max_slot_wal_keep_size", "-1"))
    return Server(
        version=version,
        user=user,
        database=database,
        encoding=encoding,
        in_recovery=recovery,
        may_replicate=replicate,
        wal_level=settings["wal_level"],
        wal_senders=senders,
        max_wal_senders=int(settings["max_wal_senders"]),
        slots=slot_count,
        max_replication_slots=int(settings["max_replication_slots"]),
        max_slot_wal_bytes=keep * MIB if keep >= 0 else -1,
        idle_slot_timeout=settings.get("idle_replication_slot_timeout", "0"),
        synchronous_commit=settings["synchronous_commit"],
        wal_writer_delay=settings["wal_writer_delay"],
        synchronous_standby_names=settings["synchronous_standby_names"],
        synchronous_walsenders=tuple(synchronous),
        physical_slots=tuple(physical),
        backend_pid=pid,
        promised_pid=connection.info.backend_pid,
        client_roles=acting,
    )


def probe_plugin(connection: Connection, plugin: str) -> Probe:
    """Try an output plugin with a temporary slot, which is gone at once.

    ``connection`` is in autocommit. A plugin that may not be used is refused before anything else; then PostgreSQL
    waits for running transactions, and we for ``PROBE_SECONDS``. Raises psycopg2.Error for a lost connection.
    """
    name = f"walstream_probe_{connection.info.backend_pid}"
    try:
        with connection.cursor() as cursor:
            cursor.execute("select pg_catalog.set_config('statement_timeout', %s, false)", (f"{PROBE_SECONDS}s",))
            try:
                cursor.execute(
                    "select pg_catalog.pg_create_logical_replication_slot(%s, %s, true)", (name, plugin)
                )  # fmt: skip
                cursor.execute("select pg_catalog.pg_drop_replication_slot(%s)", (name,))
            finally:
                cursor.execute("select pg_catalog.set_config('statement_timeout', '0', false)")
    except psycopg2.errors.QueryCanceled:
        return Probe(plugin, "usable", "usable; a new slot has to wait for transactions that are running")
    except psycopg2.Error as error:
        if connection.closed:
            raise
        text = (error.diag.message_primary or str(error)).strip()
        if error.pgcode == "58P01":
            return Probe(plugin, "missing", text)
        if error.pgcode == "42501" and "output plugin" in text:
            return Probe(plugin, "refused", text)
        return Probe(plugin, "unknown", text)
    return Probe(plugin, "usable")


def read_schema(connection: Connection, schema: str) -> SchemaState:
    """The state of walstream's own tables. Raises psycopg2.Error, ConfigError."""
    migrate.check_schema_name(schema)
    return migrate.state(connection, schema)


def judge_server(server: Server) -> list[Finding]:
    """Everything that is the server's or the role's, in the order in which it has to be mended."""
    return [*_connection(server), *_settings(server), *_rights(server)]


def _finding(code: str, subject: str, verdict: tuple[Severity, str, str] | None, fine: str) -> Finding:
    severity, cause, repair = verdict or ("ok", fine, "")
    return Finding(code, severity, subject, cause, repair)


def _connection(server: Server) -> Iterator[Finding]:
    pooled = server.backend_pid != server.promised_pid
    cause = "the session is not the one that was opened: a pooler stands between"
    yield _finding("pooler", "connection", ("error", cause, postgres.POOLER_REPAIR) if pooled else None, "direct")
    shown = f"PostgreSQL {server.version // 10000}.{server.version % 10000}"
    verdict: tuple[Severity, str, str] | None = None
    if server.version < OLDEST_VERSION:
        verdict = ("error", f"{shown} is older than 14", "upgrade the server")
    yield _finding("server_version", "server", verdict, shown)
    verdict = None
    if server.encoding != "UTF8":
        cause = f"the database {server.database} is encoded in {server.encoding}, and the WAL has its bytes as they are"
        verdict = ("error", cause, "move the data to a database created with encoding 'UTF8'")
    yield _finding("encoding", server.database, verdict, "UTF8")
    verdict = None
    if server.in_recovery and server.version < 160000:
        verdict = ("error", "the server is a standby, and decodes only from PostgreSQL 16 on", "connect to the primary")
    elif server.in_recovery:
        cause = "the server is a standby: subscriptions, channels and presence cannot be written here"
        verdict = ("warning", cause, "connect to the primary")
    yield _finding("standby", "server", verdict, "primary")


def _settings(server: Server) -> Iterator[Finding]:
    verdict: tuple[Severity, str, str] | None = None
    if server.wal_level != "logical":
        repair = "alter system set wal_level = logical; then restart the server"
        verdict = ("error", f"wal_level is {server.wal_level}: nothing can be decoded", repair)
    yield _finding("wal_level", "server", verdict, "logical")
    for code, used, limit, setting in (
        ("wal_senders", server.wal_senders, server.max_wal_senders, "max_wal_senders"),
        ("replication_slots", server.slots, server.max_replication_slots, "max_replication_slots"),
    ):
        verdict = None
        repair = f"alter system set {setting} = {max(limit, used, 5) + 5}; then restart the server"
        if limit == 0:
            verdict = ("error", f"{setting} is 0: streaming is switched off", repair)
        elif used >= limit:
            cause = f"all {limit} of {setting} are in use"
            verdict = ("warning", cause, f"drop what nobody uses (walstream slot list shows slots), or {repair}")
        yield _finding(code, "server", verdict, f"{used} of {limit} in use")
    verdict = None
    if server.max_slot_wal_bytes < 0:
        cause = "max_slot_wal_keep_size is unlimited: while no daemon reads, its slot keeps WAL until the disk is full"
        repair = "alter system set max_slot_wal_keep_size = '10GB'; select pg_reload_conf()"
        verdict = ("warning", cause, repair)
    yield _finding("slot_wal_limit", "server", verdict, f"{server.max_slot_wal_bytes // MIB} MB")
    verdict = None
    if server.idle_slot_timeout != "0":
        cause = "idle_replication_slot_timeout invalidates the slot of a daemon that is away for too long"
        repair = "alter system set idle_replication_slot_timeout = 0; select pg_reload_conf()"
        verdict = ("warning", cause, repair)
    yield _finding("slot_idle_timeout", "server", verdict, "off")
    verdict = None
    if server.synchronous_commit == "off":
        cause = f"synchronous_commit is off: changes arrive up to {3 * int(server.wal_writer_delay)} ms later"
        verdict = ("warning", cause, "alter system set synchronous_commit = on; select pg_reload_conf()")
    yield _finding("synchronous_commit", "server", verdict, server.synchronous_commit)
    verdict = None
    if server.synchronous_walsenders or any(map(_is_ours, standby_names(server.synchronous_standby_names))):
        cause = (
            f"synchronous_standby_names = {server.synchronous_standby_names!r} counts walstream as a standby:"
            " every commit may wait for it"
        )
        repair = "name the real standbys in synchronous_standby_names, without * and walstream; select pg_reload_conf()"
        verdict = ("error", cause, repair)
    yield _finding("synchronous_standby", "server", verdict, "walstream is none")


def _is_ours(name: str) -> bool:
    return name == "*" or name.lower().startswith(APPLICATION_NAME)


def standby_names(setting: str) -> tuple[str, ...]:
    """Names in ``synchronous_standby_names``: a list, ``2 (a, b)``, ``FIRST 2 (a, b)`` or ``ANY 2 (a, b)``."""
    names = []
    for written, method, bare in _STANDBY_TOKEN.findall(setting):
        if not method:
            names.append(written.replace('""', '"') or bare)
    return tuple(names)


def _rights(server: Server) -> Iterator[Finding]:
    user = quoted(server.user)
    verdict: tuple[Severity, str, str] | None = None
    if not server.may_replicate:
        repair = f"a superuser runs: alter role {user} replication (on Amazon RDS: grant rds_replication to {user})"
        verdict = ("error", f"the role {server.user} has no REPLICATION attribute and may use no slot", repair)
    yield _finding("replication_right", server.user, verdict, "may use slots")
    for role in roles.CLIENT_ROLES:
        verdict = None
        if role not in server.client_roles:
            verdict = ("warning", f"there is no role {role}: tokens that name it are refused", "walstream init")
        elif not server.client_roles[role]:
            cause = f"{server.user} may not act as {role}: what {role} may see cannot be asked"
            verdict = ("warning", cause, f"grant {role} to {user}")
        yield _finding("client_role", role, verdict, f"{server.user} may act as it")


def judge_plugins(server: Server, decoder: str, slot: Slot | None, probes: Sequence[Probe]) -> list[Finding]:
    """Whether there is a plugin to read with. ``probes``: in the order of ``slots.PLUGINS[decoder]``."""
    usable = [probe.plugin for probe in probes if probe.state == "usable"]
    findings = []
    for probe in probes:
        needed = not usable or (slot is not None and slot.plugin == probe.plugin)
        subject = probe.plugin
        if probe.state == "usable":
            findings.append(Finding("plugin", "ok", subject, probe.detail or "usable"))
        elif probe.state == "unknown":
            severity: Severity = "unknown" if needed else "ok"
            findings.append(Finding("plugin", severity, subject, f"cannot be tried: {probe.detail}"))
        elif probe.state == "missing":
            repair = (
                f"install it on the server (Debian: apt-get install postgresql-{server.version // 10000}-{subject})"
            )
            if needed:
                findings.append(Finding("plugin_missing", "error", subject, probe.detail, repair))
            else:
                findings.append(Finding("plugin", "ok", subject, f"not installed; {usable[0]} is used instead"))
        else:
            severity = "error" if needed else "warning"
            repair = (
                f"a superuser runs: alter role {quoted(server.user)} set output_plugin_libraries ="
                f" pgoutput, test_decoding, {subject}"
            )
            told = probe.detail if needed else f"{probe.detail}; {usable[0]} is used instead"
            findings.append(Finding("plugin_refused", severity, subject, told, repair))
    return findings


def judge_slot(server: Server, decoder: str, name: str, slot: Slot | None, budget: Budget | None = None) -> Finding:
    """Whether the configured slot is ours to use. ``budget``: of WAL, as far as it was measured."""
    again = f"walstream slot drop {name}; the daemon makes a new one, and clients are told of the gap"
    other = "choose another name with WALSTREAM_SLOT"
    if slot is None:
        if name in server.physical_slots:
            return Finding("slot_physical", "error", name, "it is a slot of physical replication", other)
        return Finding("slot", "ok", name, "not there yet: it is made at the first start")
    if slot.database != server.database:
        cause = f"it belongs to the database {slot.database}, not to {server.database}"
        return Finding("slot_database", "error", name, cause, other)
    if slot.plugin not in slots.PLUGINS[decoder]:
        cause = f"it was made with {slot.plugin}, and the decoder is {decoder}"
        return Finding("slot_plugin", "error", name, cause, f"{again}; or {other}, or change WALSTREAM_DECODER")
    renew = f"start walstream serve, which makes a new one and tells clients of the gap; or walstream slot drop {name}"
    if slot.wal_status == "lost":
        why = f" ({slot.invalidation})" if slot.invalidation else ""
        return Finding("slot_lost", "error", name, f"the server has removed WAL that it needed{why}", renew)
    if slot.is_ahead:
        cause = f"it has confirmed {slot.confirmed_lsn}, and the server's WAL ends at {slot.wal_end}: was it restored?"
        return Finding("slot_ahead", "error", name, cause, renew)
    retained = f"{size(slot.retained_bytes)} of WAL kept, {size(slot.lag_bytes)} not confirmed"
    if budget is not None and budget.is_alarming:
        limited = server.max_slot_wal_bytes >= 0
        risk: Severity = "error" if slot.wal_status == "unreserved" else "warning"
        fate = "it will soon be lost" if limited else "it fills the disk"
        cause = f"{fate} ({budget}; {size(slot.lag_bytes)} not confirmed)"
        raised = "max_slot_wal_keep_size" if limited else "wal_budget_bytes, or set max_slot_wal_keep_size"
        return Finding("slot_at_risk", risk, name, cause, f"see that the daemon reads, and raise {raised}")
    if not slot.active:
        cause = f"nobody reads it: {retained}"
        return Finding(
            "slot_idle", "warning", name, cause, "start walstream serve, or drop the slot if its node is gone"
        )
    budgeted = f", budget {budget.state}" if budget is not None else ""
    failover = {None: "", True: ", kept by standbys for a failover", False: ", not kept by standbys"}[slot.failover]
    return Finding("slot", "ok", name, f"{slot.plugin}, active, {retained}{budgeted}{failover}")


def judge_keeper(name: str, slot: Slot | None, keeper: OpenTransaction) -> Finding:
    """A transaction that nobody ends, for which the slot waits or keeps WAL that it has long confirmed.

    ``slot``: None if there is none yet.
    """
    if slot is None or slot.confirmed_lsn is None:
        cause = f"it will be made after {keeper}"
    else:
        cause = f"{keeper} keeps {size((slot.retained_bytes or 0) - (slot.lag_bytes or 0))} of WAL that is confirmed"
    return Finding("slot_kept", "warning", name, cause, keeper.repair)


def judge_parked(number: int, names: str) -> Finding:
    """Whether something of the WAL was left out. ``names``: of its tables, as far as they are known."""
    if not number:
        return Finding("parked", "ok", "WAL", "nothing was left out")
    cause = f"{number} of what could not be read was left out" + (f", of {names}" if names else "")
    repair = "read these tables again; walstream slot parked shows what it was, --clear-all forgets it"
    return Finding("parked", "warning", "WAL", cause, repair)


def judge_stuck(nodes: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Daemons that stand still before something that they cannot read."""
    for node, reason in nodes:
        cause = f"it stands still before something that it cannot read: {reason}"
        yield Finding("poisoned", "error", node, cause, "filter_tables, decoder = pgoutput, or poison = skip")


def judge_schema(schema: str, state: SchemaState) -> Finding:
    """Whether walstream's own tables are there and of this release."""
    rename = "choose another name with WALSTREAM_SCHEMA"
    match state.condition:
        case "current":
            return Finding("schema", "ok", schema, "of this release")
        case "absent" | "empty":
            return Finding("schema", "error", schema, "walstream's tables are not there", "walstream init")
        case "pending":
            return Finding("schema", "error", schema, f"migrations are pending: {state.detail}", "walstream init")
        case "foreign":
            return Finding("schema", "error", schema, f"it is not walstream's: it {state.detail}", rename)
        case _:
            cause = f"it is of another release ({state.condition}: {state.detail})"
            return Finding("schema", "error", schema, cause, "install the release that made it")


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "an unknown amount"
    return f"{count} bytes" if abs(count) < 10 * 1024 else f"{count / MIB:.1f} MB"
