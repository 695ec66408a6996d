"""What psycopg2 confirms by itself, and the rules that keep it from confirming what must be kept."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from integration.assumptions.stream import (
    PLUGINS,
    Message,
    Stream,
    confirmed,
    eventually,
    make_slot,
    streaming,
)
from integration.fixtures.beside import Beside
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.lsn import Lsn
from walstream.shell.commands.private_cluster import Cluster

SENDER_SECONDS = 2.0
LARGE = 40_000


@pytest.fixture(scope="module")
def hasty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server that loses patience with its readers soon."""
    settings = {"wal_sender_timeout": f"{SENDER_SECONDS:g}s", "autovacuum": "off"}
    with fresh_cluster(tmp_path_factory.mktemp("hasty"), settings) as cluster:
        yield cluster


@pytest.fixture
def hasty(hasty_cluster: Cluster) -> Iterator[TestDatabase]:
    with fresh_database(hasty_cluster) as database:
        database.execute("create table t (id bigserial primary key, v text)")
        yield database


def overlap(database: TestDatabase) -> None:
    """T3 begins, T1 and T2 commit, then T3 does: the rows of T3 lie before the end of T1."""
    large = database.connect(autocommit=False)
    large.cursor().execute(f"insert into t (v) select repeat('x', 100) from generate_series(1, {LARGE})")
    for name in ("T1", "T2"):
        database.execute("insert into t (v) values (%s)", (name,))
    large.commit()
    large.close()


def is_commit(message: Message) -> bool:
    return message.kind == "C"


def read_into_the_large_one(stream: Stream) -> tuple[Lsn, Lsn]:
    """Read T1 and T2, confirm T1 alone, read some of T3's rows. Returns the ends of T1 and T2."""
    first, second = stream.commits(2)
    stream.confirm(first.end)
    begun = [stream.next() for _ in range(20)]
    assert not any(map(is_commit, begun))
    assert begun[-1].start < first.end
    return first.end, second.end


@pytest.mark.parametrize("plugin", PLUGINS)
def test_psycopg2_confirms_by_itself_what_was_never_confirmed(hasty: TestDatabase, plugin: str) -> None:
    """Why replies are never asked for: an answer in the midst of T3 makes psycopg2 confirm T2, which is then lost."""
    slot = make_slot(hasty, plugin)
    overlap(hasty)
    with streaming(hasty, slot, plugin) as stream:
        _, second = read_into_the_large_one(stream)
        assert confirmed(hasty, slot) < second
        stream.cursor.send_feedback(reply=True)
        stream.until(is_commit)
        stream.cursor.send_feedback(force=True)
        eventually(lambda: confirmed(hasty, slot) >= second)
    with streaming(hasty, slot, plugin) as stream:
        again = stream.until(is_commit)
        assert all(b"T2" not in message.payload for message in again)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_so_does_a_reader_that_pauses(hasty: TestDatabase, plugin: str) -> None:
    """Why a stream that was not read for long is closed unread: the server has asked meanwhile."""
    slot = make_slot(hasty, plugin)
    overlap(hasty)
    with streaming(hasty, slot, plugin) as stream:
        _, second = read_into_the_large_one(stream)
        time.sleep(SENDER_SECONDS * 0.75)
        stream.until(is_commit)
        stream.cursor.send_feedback(force=True)
        eventually(lambda: confirmed(hasty, slot) >= second)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_closing_without_reading_on_confirms_nothing(hasty: TestDatabase, plugin: str) -> None:
    """The way out after a pause: nothing is confirmed, and everything after T1 comes again."""
    slot = make_slot(hasty, plugin)
    overlap(hasty)
    with streaming(hasty, slot, plugin) as stream:
        first, second = read_into_the_large_one(stream)
        time.sleep(SENDER_SECONDS * 0.75)
    assert confirmed(hasty, slot) <= first
    with streaming(hasty, slot, plugin) as stream:
        assert stream.until(is_commit)[-1].end == second


@pytest.mark.parametrize("plugin", PLUGINS)
def test_starting_at_the_newest_commit_confirms_it(hasty: TestDatabase, plugin: str) -> None:
    """Why every START_REPLICATION begins at 0/0: else the first keepalive confirms the whole history."""
    slot = make_slot(hasty, plugin)
    for number in range(3):
        hasty.execute("insert into t (v) values (%s)", (f"row {number}",))
    with streaming(hasty, slot, plugin) as stream:
        ends = [message.end for message in stream.commits(3)]
        stream.confirm(ends[0])
        eventually(lambda: confirmed(hasty, slot) >= ends[0])
    with streaming(hasty, slot, plugin) as stream:
        assert [message.end for message in stream.commits(2)] == ends[1:]
        assert confirmed(hasty, slot) == ends[0]
    with streaming(hasty, slot, plugin, start=ends[-1]) as stream:
        deadline = time.monotonic() + 10
        while confirmed(hasty, slot) < ends[-1]:
            assert time.monotonic() < deadline
            assert stream.poll() is None
            time.sleep(0.02)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_start_at_nothing_does_not_lose_what_comes_first(hasty: TestDatabase, plugin: str) -> None:
    """A keepalive before the first message does confirm, yet only what held nothing for us."""
    slot = make_slot(hasty, plugin)
    open_one = hasty.connect(autocommit=False)
    open_one.cursor().execute("insert into t (v) values ('long')")
    hasty.execute("select pg_switch_wal()")
    with streaming(hasty, slot, plugin) as stream:
        assert stream.rest(seconds=SENDER_SECONDS * 0.6) == []
    open_one.commit()
    open_one.close()
    with streaming(hasty, slot, plugin) as stream:
        assert any(b"long" in message.payload for message in stream.until(is_commit))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_who_has_confirmed_everything_advances_while_idle(hasty: TestDatabase, plugin: str) -> None:
    """Why an idle database costs no WAL: once all is confirmed, psycopg2's own confirming is what we want."""
    slot = make_slot(hasty, plugin)
    hasty.execute("insert into t (v) values ('only')")
    with streaming(hasty, slot, plugin) as stream:
        stream.confirm(stream.commits(1)[0].end)
        hasty.execute("create table unseen as select generate_series(1, 1000)")
        stream.confirm(stream.commits(1)[0].end)
        hasty.execute("vacuum unseen")
        target = Lsn.parse(hasty.scalar("select pg_current_wal_lsn()::text"))
        deadline = time.monotonic() + 15
        while confirmed(hasty, slot) < target:
            assert time.monotonic() < deadline
            stream.poll()
            time.sleep(0.02)


class Writers(Beside):
    """Threads that commit overlapping transactions until the block ends; ``committed``: how many."""

    def __init__(self, database: TestDatabase, count: int) -> None:
        super().__init__(*(partial(self._write, seed) for seed in range(count)))
        self.committed = 0
        self._database = database
        self._lock = threading.Lock()

    def _write(self, seed: int) -> None:
        chance = random.Random(seed)
        connection = self._database.connect(autocommit=False)
        while not self.over.is_set():
            for _ in range(chance.randint(1, 4)):
                connection.cursor().execute(
                    "insert into t (v) select repeat('y', 50) from generate_series(1, %s)",
                    (chance.choice((1, 5, 100)),),
                )
                time.sleep(chance.random() * 0.02)
            connection.commit()
            with self._lock:
                self.committed += 1
        connection.close()


class TrailingReader:
    """Reads as the daemon does: confirms ends of commits only, and those ``trail`` commits late."""

    def __init__(self, trail: int) -> None:
        self.trail = trail
        self.known: list[Lsn] = []  # commit ends in the order of their first arrival
        self.explicit = Lsn(0)

    def read(self, stream: Stream, *, seconds: float) -> None:
        """Take what has come; a commit that is known is dropped."""
        for message in stream.rest(seconds=seconds):
            if message.kind == "C" and (not self.known or message.end > self.known[-1]):
                self.known.append(message.end)

    def confirm(self, stream: Stream, *, force: bool) -> None:
        """Report what has left the window."""
        if len(self.known) > self.trail:
            self.explicit = max(self.explicit, self.known[-self.trail])
            stream.cursor.send_feedback(flush_lsn=self.explicit, force=force)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_who_keeps_the_rules_is_never_confirmed_ahead(hasty: TestDatabase, plugin: str) -> None:
    """The rules under stress: overlapping writers, a window that trails, streams that begin again at 0/0."""
    slot = make_slot(hasty, plugin)
    reader = TrailingReader(20)
    reader.explicit = confirmed(hasty, slot)
    with Writers(hasty, 3) as writers:
        for _ in range(4):
            with streaming(hasty, slot, plugin) as stream:
                for turn in range(40):
                    reader.read(stream, seconds=0.01)
                    reader.confirm(stream, force=turn % 3 == 0)
                    if turn % 5 == 0:
                        assert confirmed(hasty, slot) <= reader.explicit
    assert confirmed(hasty, slot) <= reader.explicit
    deadline = time.monotonic() + 60  # a busy machine takes its time
    with streaming(hasty, slot, plugin) as stream:
        reader.read(stream, seconds=1)
        while len(reader.known) < writers.committed and time.monotonic() < deadline:
            reader.read(stream, seconds=1)
    assert len(reader.known) == writers.committed, "a transaction was lost"
