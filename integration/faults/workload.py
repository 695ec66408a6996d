"""The audit workload: transactions of many shapes, each of which says of itself, in its last row, what it did.

Transfers between accounts keep their sum; other transactions write into several tables, with savepoints, rollbacks and
values long enough for TOAST. The server may go away at any moment: whether a commit arrived is the tap's to say.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2.extras import execute_values

from integration.faults.observed import share
from integration.fixtures.postgres import TestDatabase

TABLES = ("accounts", "items", "docs", "audit", "large")
ACCOUNTS = 50
RETRY_SECONDS = 0.05

SCHEMA = f"""
create table public.accounts (id bigint primary key, n bigint not null);
alter table public.accounts replica identity full;
create table public.items (id bigserial primary key, n bigint not null, v text);
create table public.docs (id bigserial primary key, n bigint not null, body text);
alter table public.docs alter body set storage external;
create table public.large (id bigserial primary key, n bigint not null default 0, v text, b bytea, j jsonb);
alter table public.large alter v set storage external, alter b set storage external, alter j set storage external;
create table public.audit (id bigserial primary key, writer bigint, number bigint, rows bigint, checksum bigint);
grant select on public.accounts, public.items, public.docs, public.audit, public.large
to anon, authenticated, service_role;
insert into public.accounts select n, 1000 from generate_series(1, {ACCOUNTS}) n;
"""
"""Every table has its key in ``id``; ``n`` is what its checksum is made of. Writers leave ``large`` alone."""


def prepare(database: TestDatabase) -> None:
    """Make the tables, and have the daemon capture them."""
    database.execute(SCHEMA)
    for table in TABLES:
        database.execute("insert into realtime.subscriptions (table_name) values (%s)", (f"public.{table}",))


class _Transaction:
    """One transaction under way, and what its audit row is going to say."""

    def __init__(self, cursor: psycopg2.extensions.cursor, rng: random.Random) -> None:
        self.cursor = cursor
        self.rng = rng
        self.rows = 0
        self.checksum = 0

    def run(self, table: str, operation: str, statement: str, values: Any = ()) -> None:
        """A statement that returns ``id`` and ``n`` of what it changed."""
        self.cursor.execute(statement, values)
        self._count(table, operation, self.cursor.fetchall())

    def insert(self, table: str, column: str, texts: list[str]) -> None:
        """Rows of ``table``, whose numbers are random."""
        rows = [(self.rng.randrange(1 << 40), text) for text in texts]
        found = execute_values(
            self.cursor, f"insert into public.{table} (n, {column}) values %s returning id, n", rows,
            page_size=1000, fetch=True,
        )  # fmt: skip
        self._count(table, "INSERT", found)

    def _count(self, table: str, operation: str, found: list[tuple[int, int]]) -> None:
        self.rows += len(found)
        for key, number in found:
            self.checksum += share(table, operation, key, 0 if operation == "DELETE" else number)

    # -- the shapes

    def transfer(self) -> None:
        """Some money between two accounts, always in the same order of locks."""
        amount = self.rng.randint(1, 50)
        low, high = sorted(self.rng.sample(range(1, ACCOUNTS + 1), 2))
        for account, moved in ((low, -amount), (high, amount)):
            self.run("accounts", "UPDATE", "update public.accounts set n = n + %s where id = %s returning id, n",
                     (moved, account))  # fmt: skip

    def bulk(self) -> None:
        """Rows of one table, now and then many."""
        count = self.rng.choices((3, 10, 40, 400), (60, 30, 9, 1))[0]
        self.insert("items", "v", [f"item {number}" for number in range(count)])

    def documents(self) -> None:
        """Long values, written once and then left alone by an UPDATE."""
        self.insert("docs", "body", [self.rng.randbytes(self.rng.randint(1500, 4000)).hex()])
        self.run("docs", "UPDATE", "update public.docs set n = n + 1 where id in (select id from public.docs"
                 " order by id desc limit 2 for update skip locked) returning id, n")  # fmt: skip

    def sweep(self) -> None:
        """Old rows go."""
        for table in ("items", "docs"):
            self.run(table, "DELETE", f"delete from public.{table} where id in (select id from public.{table}"
                     " order by id limit 6 for update skip locked) returning id, n")  # fmt: skip

    def nested(self) -> None:
        """Savepoints, of which every other is rolled back."""
        for number in range(self.rng.randint(2, 6)):
            before = self.rows, self.checksum
            self.cursor.execute("savepoint s")
            self.rng.choice((self.bulk, self.documents))()
            if number % 2:
                self.cursor.execute("rollback to savepoint s")
                self.rows, self.checksum = before
            self.cursor.execute("release savepoint s")

    def audit(self, writer: int, number: int) -> None:
        """The last row: what the others were."""
        self.cursor.execute(
            "insert into public.audit (writer, number, rows, checksum) values (%s, %s, %s, %s)",
            (writer, number, self.rows, self.checksum),
        )


_SHAPES: tuple[tuple[Callable[[_Transaction], None], int], ...] = (
    (_Transaction.transfer, 40), (_Transaction.bulk, 25), (_Transaction.documents, 15), (_Transaction.sweep, 12),
    (_Transaction.nested, 8),
)  # fmt: skip


class _Writer(threading.Thread):
    """One connection that writes until it is told to stop, and comes back when the server does."""

    def __init__(self, owner: Workload, number: int, seed: int) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.owner = owner
        self.number = number
        self.rng = random.Random(seed)
        self.committed = 0
        self._done = 0
        self._due = 0.0
        self._rows = 1
        self.failure: BaseException | None = None

    def run(self) -> None:
        connection = None
        try:
            while not self.owner.is_over:
                if not self.owner.begin():
                    continue
                try:
                    if connection is None or connection.closed:
                        connection = self.owner.database.connect(autocommit=False)
                    self._transaction(connection)
                except psycopg2.Error as error:
                    if not _is_away(error):
                        raise
                    if connection is not None and isinstance(error, psycopg2.errors.DeadlockDetected):
                        connection.rollback()
                        continue
                    connection = None
                    time.sleep(RETRY_SECONDS)
                finally:
                    self.owner.end()
                self._pace()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            if connection is not None:
                connection.close()

    def _transaction(self, connection: Any) -> None:
        self._rows = 1
        with connection.cursor() as cursor:
            self._done += 1
            work = _Transaction(cursor, self.rng)
            shapes, weights = zip(*_SHAPES, strict=True)
            for shape in self.rng.choices(shapes, weights, k=self.rng.choice((1, 1, 1, 2))):
                shape(work)
            if self.rng.random() < 0.03:
                time.sleep(self.rng.uniform(0, 0.3))  # others overtake it
            if self.rng.random() < 0.04:
                connection.rollback()
                return
            work.audit(self.number, self._done)
            connection.commit()
            self.committed += 1
            self._rows += work.rows

    def _pace(self) -> None:
        """Keep to the owner's rate, without catching up what an outage cost."""
        due = self._due + self._rows * self.owner.pause
        now = time.monotonic()
        if due > now:
            time.sleep(min(due - now, 1.0))
        self._due = max(due, now - 0.5)


def _is_away(error: psycopg2.Error) -> bool:
    """Whether the server has gone, and not that a statement is wrong."""
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or error.pgcode is None


class Workload:
    """Writers that work until the context ends. ``rate``: row changes a second of all together, about."""

    def __init__(self, database: TestDatabase, *, seed: int, writers: int = 3, rate: float = 200.0) -> None:
        self.database = database
        self.pause = writers / rate
        self.is_over = False
        self.go = threading.Event()
        self._lock = threading.Condition()
        self._busy = 0
        self._writers = [_Writer(self, number, seed * 1000 + number) for number in range(writers)]

    def __enter__(self) -> Workload:
        for writer in self._writers:
            writer.start()
        self.go.set()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_over = True
        self.go.set()
        for writer in self._writers:
            writer.join()

    @property
    def committed(self) -> int:
        """How many commits have returned."""
        return sum(writer.committed for writer in self._writers)

    def begin(self) -> bool:
        """A writer is about to work; False, a little later, if nobody may now."""
        if not self.go.wait(0.1):
            return False
        with self._lock:
            if not self.go.is_set():
                return False
            self._busy += 1
        return True

    def end(self) -> None:
        """The transaction is over, one way or the other."""
        with self._lock:
            self._busy -= 1
            self._lock.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody writes within the context. The server has to be there."""
        self.go.clear()
        try:
            with self._lock:
                assert self._lock.wait_for(lambda: not self._busy, 60), "a writer does not come to an end"
            self.check()
            yield
        finally:
            self.go.set()

    def check(self) -> None:
        """Fails if a writer met what the server must never say."""
        for writer in self._writers:
            if writer.failure is not None:
                raise AssertionError(f"{writer.name} failed") from writer.failure


def last_words(database: TestDatabase) -> int:
    """One transaction that touches every table; where the WAL ended after it. Who has it has all that came before."""
    connection = database.connect(autocommit=False)
    try:
        with connection.cursor() as cursor:
            work = _Transaction(cursor, random.Random(0))
            work.transfer()
            work.bulk()
            work.documents()
            work.audit(-1, 0)
            connection.commit()
            cursor.execute("select pg_catalog.pg_current_wal_insert_lsn() - '0/0'")
            (end,) = cursor.fetchall()[0]
            return int(end)
    finally:
        connection.close()
