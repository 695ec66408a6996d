"""``walstream listen`` without a daemon: a temporary slot of its own, read until somebody ends it.

Nothing is kept and nothing comes twice, so none of the reader's rules about positions apply (``wal_reader``). What is
decoded, admitted and rendered is decided where the daemon decides it; what is printed, in ``listen_output``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import psycopg2
import psycopg2.extras
import trio

from walstream import decoder
from walstream.capture.plan import Admission, Plan, SubscriptionRow, subscription_row
from walstream.config import Config
from walstream.errors import DatabaseUnreachable, EnvironmentFailure, NotFound, WalstreamError
from walstream.history.assemble import Assembler
from walstream.history.position import cluster_digest
from walstream.model import Begin, Catalog, CatalogMiss, Change, Commit, Record, Relation, Transaction
from walstream.protocol.shapes import Shape, TransactionText
from walstream.shell.commands import temporary_publications
from walstream.shell.commands.listen_output import Output
from walstream.shell.database import plan_source, tables
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.join_facts import Literal, cast_literals
from walstream.shell.database.postgres import connect, connection, translate
from walstream.shell.database.rows import only
from walstream.shell.database.slots import PLUGINS
from walstream.shell.database.tables import Target
from walstream.shell.wal.spill import FileSpill

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

APPLICATION_NAME: Final = "walstream listen"
SPILL_BYTES: Final = 32 * 1024 * 1024
"""Memory that one transaction may take; a larger one waits in a file for its commit."""

TICK_SECONDS: Final = 0.005
IDLE_SECONDS: Final = 1.0
STATUS_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = 2.0
"""After this it is said what the beginning waits for."""

CLEANING_SECONDS: Final = 5.0
MISSES_MAX: Final = 20

_UNUSABLE: Final = ("42501", "58P01")  # the plugin is refused by output_plugin_libraries, or not installed
_NO_SCHEMA: Final = ("42P01", "3F000")

T = TypeVar("T")


class Wish(NamedTuple):
    """What to listen to. ``say``: how the person is told what is no change."""

    table: str
    config: Config
    dsn: str
    say: Callable[[str], None]


class Scope:
    """Which changes are shown: those of the named tables, each as its subscription has it, or whole where it has none.

    The subscriptions are those of the beginning.
    """

    def __init__(self, target: Target, plan: Plan) -> None:
        self._named = Plan([subscription_row("", target.pattern, ["*", "TRUNCATE"])], own_schema=plan.own_schema)
        self._plan = plan

    def plan_of(self, schema: str, name: str) -> Plan:
        """The subscriptions where one matches the table, else everything."""
        return self._named if self.row_for(schema, name) is None else self._plan

    def row_for(self, schema: str, name: str) -> SubscriptionRow | None:
        """The subscription that applies to a table."""
        return self._plan.row_for(schema, name)

    def wanted(self, schema: str, name: str) -> bool:
        """Whether changes of the table may be shown."""
        return self._named.wanted(schema, name) and self.plan_of(schema, name).wanted(schema, name)


def find(opened: PgConnection, text: str, schema: str) -> Target:
    """The tables that a name means. ``opened`` has the role's own search path, and loses it. Raises as ``resolve``."""
    return tables.resolve(opened, text, tables.take_search_path(opened), ours=schema)


class Listener:
    """One temporary slot and what is read from it. ``run`` once."""

    def __init__(self, wish: Wish, output: Output) -> None:
        self._wish = wish
        self._config = wish.config
        self._output = output
        self._catalog = Catalog()
        self._assembler = Assembler(spill_bytes=SPILL_BYTES, new_spill=FileSpill)
        self._admissions: dict[Relation, Admission | None] = {}
        self._literals: dict[Literal, bytes | str] = {}
        self._said: set[str] = set()
        self._asking = trio.Lock()
        self._cluster = ""
        self._committed = 0
        self._sql: PgConnection
        self._scope: Scope
        self._decoder: decoder.Decoder

    async def run(self) -> None:
        """Print changes until cancelled. Raises WalstreamError; leaves no slot and no publication."""
        self._sql = await _thread(
            functools.partial(connect, self._wish.dsn, application_name=APPLICATION_NAME, search_path=None)
        )
        try:
            with _translated():
                target = await self._ask(lambda sql: find(sql, self._wish.table, self._config.schema))
                self._scope = Scope(target, await self._ask(self._load_plan))
                self._tell(target)
                async with self._stream(target) as (replication, cursor):
                    await self._read(replication, cursor)
        finally:
            self._sql.close()

    # -- what is shown

    def _load_plan(self, sql: PgConnection) -> Plan:
        try:
            return plan_source.load(sql, self._config.schema, "").plan
        except psycopg2.Error as error:
            if error.pgcode not in _NO_SCHEMA:
                raise
            return Plan(own_schema=self._config.schema)

    def _tell(self, target: Target) -> None:
        """Say where the subscriptions leave something to be said."""
        scope = self._scope
        found = [(table, scope.row_for(table.schema, table.name)) for table in target.tables]
        bare = [table.pattern for table, row in found if row is None]
        for table, row in found:
            if row is not None and row.problem:
                self._say(f"warning: the subscription of {table.pattern} captures nothing: {row.problem}")
        if target.is_wildcard and not found:
            self._say(f"note: {target.pattern} has no table yet")
        if bare:
            shown = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
            self._say(
                f"note: no subscription names {shown}: every change is shown, and clients get none\n"
                f"repair: walstream subscribe {bare[0]}"
            )

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._wish.say(text)

    # -- the slot

    @contextlib.asynccontextmanager
    async def _stream(self, target: Target) -> AsyncIterator[tuple[PgConnection, Any]]:
        """A streaming connection with the first plugin that the server has and permits."""
        plugins = PLUGINS[self._config.decoder]
        for plugin in plugins:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    opened, cursor = await self._start(plugin, target, stack)
                except psycopg2.Error as error:
                    if plugin != plugins[-1] and error.pgcode in _UNUSABLE:
                        continue
                    raise
                self._output.pid = opened.info.backend_pid
                self._say(f"listening to {target.pattern} with {plugin}; Ctrl+C ends it")
                yield opened, cursor
                return

    async def _start(self, plugin: str, target: Target, stack: contextlib.AsyncExitStack) -> tuple[PgConnection, Any]:
        names: tuple[str, ...] = ()
        if plugin == "pgoutput":
            if not target.tables:
                raise NotFound(f"{target.pattern} has no table", repair="with wal2json new tables are heard, too")
            # Before the slot: a publication that is younger is unknown to the WAL between them.
            stack.push_async_callback(self._drop_publications, temporary_publications.names_for(self._sql))
            names = await self._ask(lambda sql: temporary_publications.ensure(sql, target.tables))
        opened = await _thread(
            functools.partial(connect, self._wish.dsn, application_name=APPLICATION_NAME, replication=True)
        )
        stack.callback(opened.close)  # and with it goes the slot
        self._decoder = decoder.make(
            plugin,
            self._catalog,
            wanted=self._scope.wanted,
            publication_names=names,
            filter_tables=self._config.filter_tables,
        )
        slot = f"walstream_listen_{opened.info.backend_pid}"
        cursor: Any = opened.cursor()
        await _saying(
            lambda: self._say("note: waiting for the transactions that are running: a slot begins after them"),
            functools.partial(_interruptible, opened, functools.partial(_create_slot, cursor, slot, plugin)),
        )
        self._cluster = await _interruptible(opened, functools.partial(_identify, cursor))
        await _interruptible(
            opened,
            functools.partial(
                cursor.start_replication,
                slot_name=slot,
                slot_type=psycopg2.extras.REPLICATION_LOGICAL,
                start_lsn=0,
                options=self._decoder.options(),
                decode=False,
                status_interval=STATUS_SECONDS,
            ),
        )
        return opened, cursor

    async def _drop_publications(self, names: Sequence[str]) -> None:
        """By a connection of its own: the other one may be in the middle of something."""

        def drop() -> None:
            with connection(self._wish.dsn, APPLICATION_NAME) as opened:
                temporary_publications.drop(opened, names)

        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEANING_SECONDS):
            try:
                await _thread(drop)
            except DatabaseUnreachable:
                pass  # the server has gone; the next listener sweeps
            except WalstreamError as error:
                self._say(f"warning: a publication was not dropped: {error.message}")

    # -- reading

    async def _read(self, replication: PgConnection, cursor: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stay_alive, cursor)
            nursery.start_soon(self._watch_server)
            with _translated():
                await self._read_on(replication.fileno(), cursor)

    async def _read_on(self, descriptor: int, cursor: Any) -> None:
        server_position = 0
        while True:
            message = await self._tick(cursor)
            await self._output.flush()
            # At once: a user's commit may wait for us where synchronous_standby_names is "*". psycopg2 itself goes on
            # to the server's position where the stream has nothing of a commit.
            if self._committed:
                cursor.send_feedback(flush_lsn=self._committed, force=True)
                self._committed = 0
            elif cursor.wal_end != server_position:
                cursor.send_feedback(force=True)
            server_position = cursor.wal_end
            if message is None:
                with trio.move_on_after(IDLE_SECONDS):
                    await trio.lowlevel.wait_readable(descriptor)
            else:
                await trio.lowlevel.checkpoint()

    async def _tick(self, cursor: Any) -> Any:
        """Take what is there, for a moment; the last message, None if there is no more."""
        ends = time.monotonic() + TICK_SECONDS
        while (message := cursor.read_message()) is not None:
            payload, data_start = message.payload, message.data_start
            record = await self._knowing(functools.partial(self._decoder.decode, payload, data_start))
            if record is not None:
                await self._take(record, len(payload))
            if time.monotonic() > ends:
                break
        return message

    async def _stay_alive(self, cursor: Any) -> None:
        """Status updates go out while a large transaction is printed, too."""
        while True:
            await trio.sleep(STATUS_SECONDS)
            with _translated():
                cursor.send_feedback(force=True)

    async def _watch_server(self) -> None:
        """Raise DatabaseUnreachable when the server ends sessions: it would wait for us with its shutdown."""
        while True:
            await trio.lowlevel.wait_readable(self._sql.fileno())
            async with self._asking:
                with contextlib.suppress(psycopg2.Error):  # of which the notice says more
                    self._sql.poll()
            if self._sql.closed:
                told = self._sql.notices[-1:] or [": the server has ended the session"]
                raise DatabaseUnreachable(told[0].partition(":")[2].strip())

    async def _take(self, record: Record, size: int) -> None:
        if isinstance(record, Change):
            await self._change(record, size)
        elif isinstance(record, Begin):
            self._assembler.begin(record)
        elif isinstance(record, Commit):
            transaction, _ = self._assembler.commit(record)
            self._committed = transaction.commit_lsn
            await self._show(transaction)
        elif isinstance(record, tuple):
            for change in record:
                await self._change(change, size)

    async def _change(self, change: Change, size: int) -> None:
        if change.relation not in self._admissions:
            self._admissions[change.relation] = await self._admission(change.relation)
        admission = self._admissions[change.relation]
        admitted = None if admission is None else admission.admit(change)
        if admitted is not None:
            self._assembler.change(admitted, size)

    async def _admission(self, relation: Relation) -> Admission | None:
        plan = self._scope.plan_of(relation.schema, relation.name)
        needed = await self._knowing(lambda: plan.literals_needed(relation, self._catalog))
        missing = needed - self._literals.keys()
        if missing:
            self._literals.update(await self._ask(lambda sql: cast_literals(sql, missing, self._catalog)))
        admission = await self._knowing(lambda: plan.admission(relation, self._catalog, self._literals))
        for fault in plan.faults(relation):
            self._say(f"warning: {fault.message}")
        return admission

    async def _show(self, transaction: Transaction) -> None:
        text = TransactionText.of(transaction, self._cluster, self._config.max_record_bytes)
        left = len(transaction.changes)
        for change in transaction.changes:
            left -= 1
            message = Shape.FEED.render(change, text, None, last=not left)
            self._output.add(change.relation.schema, change.relation.name, message)
            if self._output.is_full:
                await self._output.flush()

    # -- asking

    async def _knowing(self, call: Callable[[], T]) -> T:
        """Call until nothing is missed of the catalog."""
        for _ in range(MISSES_MAX):
            try:
                return call()
            except CatalogMiss as miss:
                missed = miss
            if missed.relations:
                self._catalog.load(await self._ask(functools.partial(load_relations, names=missed.relations)))
            if missed.types:
                self._catalog.load(types=await self._ask(functools.partial(load_types, oids=missed.types)))
        raise EnvironmentFailure("the catalog never has what a message needs")

    async def _ask(self, work: Callable[[PgConnection], T]) -> T:
        async with self._asking:
            return await _interruptible(self._sql, functools.partial(work, self._sql))


def _create_slot(cursor: Any, slot: str, plugin: str) -> None:
    """PostgreSQL 17, 53.4. Waits for the transactions that are running; raises psycopg2.Error."""
    cursor.execute(f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL "{plugin}" NOEXPORT_SNAPSHOT')


def _identify(cursor: Any) -> str:
    cursor.execute("IDENTIFY_SYSTEM")
    system, timeline, *_ = only(cursor)
    return cluster_digest(system, timeline)


async def _thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def _interruptible(opened: PgConnection, work: Callable[[], T]) -> T:
    """Call ``work``, which uses ``opened``, in a thread. Cancelling it cancels the statement and waits for its end."""
    finished = threading.Event()

    def call() -> T:
        try:
            return work()
        finally:
            finished.set()

    try:
        return await _thread(call)
    except trio.Cancelled:
        with contextlib.suppress(psycopg2.Error):
            opened.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(finished.wait, CLEANING_SECONDS)
        raise


async def _saying(say: Callable[[], None], work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work``, and say what it waits for if it takes long. Raises psycopg2.Error as ``work`` does."""

    async def wait() -> None:
        await trio.sleep(PATIENCE_SECONDS)
        say()

    failed: psycopg2.Error | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        try:
            await work()
        except psycopg2.Error as error:  # else the nursery would wrap it
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error) from error
