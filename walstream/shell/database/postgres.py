"""PostgreSQL by psycopg2: connections with pinned settings, a small pool of worker threads, and the one error table.

Streaming from the slot is ``wal_reader``; statements live beside what needs their answers.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import trio

from walstream.config import passwords_of
from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.telemetry.redaction import Redactor

T = TypeVar("T")
PgConnection = psycopg2.extensions.connection

PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""Session settings that decide how values are printed; roles and databases may have other defaults."""

SILENCE_MS = 60_000
"""A server whose machine answers nothing for this long is given up; only on TCP."""

CONNECT_SECONDS = 10

OVERDUE_SECONDS: Final = 10.0
"""The server is asked about a statement that has been under way for so long: does it work on it?"""

# Who has been idle for a while was never told of what we wait for, or has answered. Connections through a pooler have
# numbers of the pooler's, of which nothing can be said.
_LOST: Final = """
select asked.pid
  from unnest(%s::integer[]) asked (pid)
  left join pg_catalog.pg_stat_activity a on a.pid = asked.pid
 where pg_catalog.pg_backend_pid() = %s
   and (a.pid is null
        or a.state like 'idle%%' and a.state_change < pg_catalog.clock_timestamp() - interval '5 seconds')
"""


def connect(
    dsn: str,
    *,
    application_name: str,
    autocommit: bool = True,
    replication: bool = False,
    search_path: str | None = "",
    stall_seconds: float = 0.0,
) -> PgConnection:
    """A new connection. Blocks; raises DatabaseUnreachable or DatabaseRefused.

    ``search_path``: "" so that every name has to be qualified, None to keep the role's own. ``stall_seconds``: so long
    the server tries to send to who takes nothing, 0: as its system has it. On TCP only; ``options`` of the DSN win.
    """
    settings = dict(PINNED)
    if search_path is not None:
        settings["search_path"] = search_path
    options = " ".join(f"-c {name}={_option(value)}" for name, value in settings.items())
    factory = psycopg2.extras.LogicalReplicationConnection if replication else None
    try:
        given = psycopg2.extensions.parse_dsn(dsn)
        if "options" in given:
            options = f"{given['options']} {options}"
        if stall_seconds:
            options = f"-c tcp_user_timeout={stall_seconds * 1000:.0f} {options}"
        connection = psycopg2.connect(
            dsn,
            connection_factory=factory,
            application_name=application_name,
            client_encoding="UTF8",
            options=options,
            connect_timeout=given.get("connect_timeout", CONNECT_SECONDS),
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            # Probes are sent on quiet connections only: with something unanswered the kernel would try for a quarter
            # of an hour. Milliseconds.
            tcp_user_timeout=given.get("tcp_user_timeout", SILENCE_MS),
        )
    except psycopg2.Error as error:
        raise translate(error, Redactor(passwords_of(dsn))) from error
    if not replication:
        connection.autocommit = autocommit
    return connection


def _option(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ") if value else ""


@contextlib.contextmanager
def connection(
    dsn: str, application_name: str, *, autocommit: bool = True, search_path: str | None = ""
) -> Iterator[PgConnection]:
    """A connection for one block; psycopg2's errors leave it as ours."""
    opened = connect(dsn, application_name=application_name, autocommit=autocommit, search_path=search_path)
    try:
        yield opened
    except psycopg2.Error as error:
        raise translate(error) from error
    finally:
        opened.close()


@contextlib.contextmanager
def one_snapshot(opened: PgConnection) -> Iterator[None]:
    """Statements of the block see the database at one moment; they read only. For a connection in autocommit."""
    with opened.cursor() as cursor:
        cursor.execute("begin isolation level repeatable read, read only")
        try:
            yield
        finally:
            if not opened.closed:
                cursor.execute("rollback")


_PLUGIN_REFUSED_REPAIR = (
    "a superuser runs: ALTER ROLE <streaming role> SET output_plugin_libraries = wal2json; "
    "or add wal2json to output_plugin_libraries for the whole server and reload"
)

_CERTIFICATE_WORDS = (
    "certificate verify failed", "does not match host name", "root certificate file", "does not support SSL",
)  # fmt: skip
_CERTIFICATE_REPAIR = (
    "sslrootcert names the file of the authority that signed the server's certificate, which has to be for the host in "
    "database_url; the server needs ssl = on"
)

POOLER_REPAIR = "connect to PostgreSQL itself, by its own host and port: sessions and replication do not pass a pooler"

# SQLSTATE → (stable reason, repair); PostgreSQL 17, Appendix A. The text of the server's message comes first anyway.
_TABLE: dict[str, tuple[str, str]] = {
    "55006": (
        "slot_active",
        "another process streams from this slot: stop it, or give this node its own WALSTREAM_SLOT",
    ),
    "42704": ("missing_object", "run `walstream init`, or create the object that the message names"),
    "55000": (
        "not_in_prerequisite_state",
        "see `walstream doctor`: the slot may be lost, or belong to another database",
    ),
    "58P01": ("plugin_missing", "install the output plugin on the server (Debian: postgresql-NN-wal2json)"),
    "22023": ("invalid_option", "the output plugin does not know an option: upgrade it"),
    "42602": ("invalid_name", "a slot's name is 1 to 63 of a-z, 0-9 and _"),
    "42710": ("duplicate_object", "the name is taken"),
    "53400": ("configuration_limit", "raise max_replication_slots and restart PostgreSQL, or drop an unused slot"),
    "53300": ("too_many_connections", "raise max_connections, or close idle clients"),
    "28P01": ("bad_password", "check the password in WALSTREAM_DATABASE_URL"),
    "28000": ("not_authorised", "check the role and pg_hba.conf"),
    "25006": (
        "no_writes",
        "WALSTREAM_DATABASE_URL has to lead to the primary (target_session_attrs=read-write), with a role that writes",
    ),
    "3D000": ("database_missing", "create the database, or correct WALSTREAM_DATABASE_URL"),
    "42501": (
        "insufficient_privilege",
        "grant the privilege that the message names; `walstream doctor` prints the statement",
    ),
    "42P01": ("undefined_table", "run `walstream init`"),
    "3F000": ("undefined_schema", "run `walstream init`"),
    "42703": ("undefined_column", "run `walstream init`: the tables are of an older release"),
    "42883": ("undefined_function", "run `walstream init`: the functions are of an older release"),
    "55P03": ("lock_not_available", "the table is in use: try again when its long transactions have ended"),
}

_NAME_REPAIR = (
    "see that the host in WALSTREAM_DATABASE_URL is spelt right, and that this machine's name service knows it"
)

_REPLICATION_REPAIR = "a superuser runs: ALTER ROLE <role> REPLICATION"

# A connection that is refused has words and no SQLSTATE: (words, SQLSTATE, reason, repair).
_WORDS: list[tuple[str, str, str, str]] = [
    ("password authentication failed", "28P01", *_TABLE["28P01"]),
    ("no password supplied", "28P01", *_TABLE["28P01"]),
    ("too many clients already", "53300", *_TABLE["53300"]),
    ("remaining connection slots are reserved", "53300", *_TABLE["53300"]),
    ("too many connections for ", "53300", *_TABLE["53300"]),
    ("must be superuser or replication role", "42501", "no_replication_right", _REPLICATION_REPAIR),
    ("permission denied to start WAL sender", "42501", "no_replication_right", _REPLICATION_REPAIR),
    (
        "number of requested standby connections exceeds", "53300",
        "no_free_wal_sender", "raise max_wal_senders and restart PostgreSQL",
    ),
]  # fmt: skip

_UNREACHABLE_CLASSES = ("08", "57")  # connection exceptions; operator intervention: shutdown, crash, starting up


def translate(error: psycopg2.Error, redactor: Redactor | None = None) -> WalstreamError:
    """Our error for one of psycopg2's; the caller raises it ``from`` the original.

    ``redactor``: knows the password, which libpq quotes when it cannot read a DSN.
    """
    state = getattr(error, "pgcode", None) or ""
    text = (getattr(error.diag, "message_primary", None) or str(error)).strip() or type(error).__name__
    text = redactor.text(text) if redactor is not None else text
    if any(words in text for words in _CERTIFICATE_WORDS):
        return DatabaseRefused(text, sqlstate=state, reason="certificate", repair=_CERTIFICATE_REPAIR)
    if state == "42501" and "output plugin" in text:
        return DatabaseRefused(text, sqlstate=state, reason="plugin_refused", repair=_PLUGIN_REFUSED_REPAIR)
    if state == "42704" and "replication slot" in text:
        return DatabaseRefused(text, sqlstate=state, reason="slot_missing", repair="it is created at the next start")
    if "unsupported startup parameter" in text:
        return DatabaseRefused(text, sqlstate=state, reason="pooler", repair=POOLER_REPAIR)
    if state in _TABLE:
        reason, repair = _TABLE[state]
        return DatabaseRefused(text, sqlstate=state, reason=reason, repair=repair)
    if state[:2] in _UNREACHABLE_CLASSES:
        return DatabaseUnreachable(text)
    if state:
        return DatabaseRefused(text, sqlstate=state)
    for words, state, reason, repair in _WORDS:
        if words in text:
            return DatabaseRefused(text, sqlstate=state, reason=reason, repair=repair)
    if "could not translate host name" in text:
        return DatabaseUnreachable(text, repair=_NAME_REPAIR)
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.DatabaseError):
        return DatabaseUnreachable(text)
    return DatabaseRefused(text)


def cut(opened: PgConnection) -> None:
    """End a connection that a thread may be using: its statement fails, and nobody waits for it, as close() would."""
    with (
        contextlib.suppress(OSError, psycopg2.Error),
        socket.socket(fileno=os.dup(opened.fileno())) as raw,
    ):
        raw.shutdown(socket.SHUT_RDWR)


def cut_lost(asking: PgConnection, pools: Iterable[Database]) -> None:
    """Cut connections whose statement the server does not work on: something between has lost it, or the answer.

    Blocks; raises psycopg2.Error. Nothing is asked while nothing is overdue.
    """
    overdue = {opened.info.backend_pid: (pool, opened) for pool in pools for opened in pool.overdue()}
    if not overdue:
        return
    with asking.cursor() as cursor:
        cursor.execute(_LOST, (list(overdue), asking.info.backend_pid))
        lost = [pid for (pid,) in cursor.fetchall()]
    for pid in lost:
        pool, opened = overdue[pid]
        pool.forget_idle()  # they went the same way
        cut(opened)


def _cancel(opened: PgConnection) -> None:
    with contextlib.suppress(psycopg2.Error):
        opened.cancel()
    cut(opened)  # where the answer is lost, the thread would wait for it for ever


class Database:
    """Ordinary SQL for trio: a few connections, each used by one worker thread at a time."""

    def __init__(self, dsn: str, application_name: str, size: int = 3) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._idle: list[PgConnection] = []
        self._under_way: dict[PgConnection, float] = {}  # since when, in monotonic seconds
        self._limiter = trio.CapacityLimiter(size)

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` with a connection in autocommit, in a thread.

        Raises DatabaseUnreachable or DatabaseRefused. Cancelling it cancels the running statement and gives the
        connection up; whether the statement took effect is then unknown.
        """
        used: list[PgConnection] = []

        def call() -> T:
            try:
                opened = self._idle.pop()
            except IndexError:  # asked for before, it may be gone by now: threads take from the list at once
                opened = connect(self._dsn, application_name=self._application_name)
            used.append(opened)
            self._under_way[opened] = time.monotonic()
            try:
                return work(opened)
            finally:
                del self._under_way[opened]

        try:
            with self._cancelling(used):
                answer = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        except psycopg2.Error as error:
            for opened in used:
                self._give_back(opened)
            raise translate(error) from error
        except Exception:
            for opened in used:
                self._give_back(opened)
            raise
        for opened in used:
            self._give_back(opened)
        return answer

    @contextlib.contextmanager
    def _cancelling(self, used: list[PgConnection]) -> Iterator[None]:
        try:
            yield
        except trio.Cancelled:
            for opened in used:
                # In a thread that nobody waits for: it asks the server over a connection of its own, which takes
                # minutes where the network swallows everything.
                threading.Thread(target=_cancel, args=(opened,), daemon=True).start()
            raise

    def _give_back(self, opened: PgConnection) -> None:
        if opened.closed or opened.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE:
            opened.close()
            return
        self._idle.append(opened)

    def overdue(self) -> list[PgConnection]:
        """Connections that have been waited for, for long. May be called by any thread."""
        until = time.monotonic() - OVERDUE_SECONDS
        return [opened for opened, since in list(self._under_way.items()) if since < until]

    def forget_idle(self) -> None:
        """Close the idle connections: the server has gone, and each would fail once. May be called by any thread."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    async def aclose(self) -> None:
        """Close every idle connection. One in use is closed when its work ends."""
        self._limiter.total_tokens = math.inf
        self.forget_idle()
        await trio.lowlevel.checkpoint()
