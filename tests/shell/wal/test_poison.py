"""What the stream cannot get past: how often it is tried, what is let go, and what is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from tests.shell.database_support import FakeConnection, FakeCursor
from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable, DecodeError
from walstream.lsn import Lsn
from walstream.shell.database.postgres import Database
from walstream.shell.wal.poison import (
    PARKED_PER_TRANSACTION,
    TRIES,
    Broken,
    Poison,
    Policy,
    UnderWay,
    is_undecodable,
    table_of,
)
from walstream.telemetry.metrics import Metrics

# As wal2json 2.5 writes them with include-types, or with a default that has quotes: no JSON.
TYPE = b'{"action":"I","schema":"public","table":"t","columns":[{"name":"m","type":"Sch Q".mood2,"value":"ok"}]}'
DEFAULT = (
    b'{"action":"I","schema":"public","table":"t","columns":[{"name":"id","type":"integer","value":1,'
    b'"default":"nextval(\'z."SeqQ"\'::regclass)"}]}'
)


class Cursor(FakeCursor):
    def execute(self, statement: str, parameters: Sequence[object] = ()) -> None:
        super().execute(statement, parameters)
        if "pg_partition_root" in statement:
            assert isinstance(self._connection, Connection)
            self._row = self._connection.root


class Connection(FakeConnection):
    """``root``: what the catalog says of every table."""

    root: Sequence[object] | None = ("public", "root")

    def cursor(self) -> Cursor:
        return Cursor(self)


class Asked:
    """The database: what was asked of it."""

    def __init__(self) -> None:
        self.connection = Connection(usual=("public.t",))

    async def run(self, work: Any) -> Any:
        return work(self.connection)

    @property
    def parked(self) -> list[tuple[object, ...]]:
        return [values for statement, values in self.connection.executed if "insert into" in str(statement)]


class Scene:
    def __init__(self, policy: Policy = "skip") -> None:
        self.asked = Asked()
        self.metrics = Metrics()
        self.poison = Poison(cast(Database, self.asked), self.metrics, slot="s", schema="realtime")
        self.poison.policy = policy
        self.tables: list[tuple[str, str] | None] = []
        self.poison.on_skipped = self._gap

    def _gap(self, record_lsn: Lsn, table: tuple[str, str] | None) -> None:
        assert record_lsn in (0x90, 0x100)
        self.tables.append(table)

    @property
    def gaps(self) -> int:
        return len(self.tables)

    def meet(self, payload: bytes, lsn: int = 5, xid: int = 7) -> bool:
        broken = Broken(payload, lsn, xid, DecodeError("not a wal2json message", payload), 0x90)

        async def main() -> bool:
            return await self.poison.set_aside(broken, "wal2json", Lsn(3))

        answer = run(main)
        assert isinstance(answer, bool)
        return answer


@pytest.mark.parametrize(
    ("payload", "table"),
    [
        (TYPE, b"public.t"),
        (DEFAULT, b"public.t"),
        (b'{"action":"M","transactional":true}', b""),
        (b"I\x00\x00\x40\x05N", b"\x00\x00\x40\x05"),
        (b"M", b""),
        (b"I\x00", b""),
        (b"", b""),
    ],
)
def test_a_row_tells_its_table(payload: bytes, table: bytes) -> None:
    assert table_of(payload) == table


@pytest.mark.parametrize("payload", [TYPE, DEFAULT])
def test_a_message_is_let_go_after_all_tries(payload: bytes) -> None:
    scene = Scene()
    assert [scene.meet(payload) for _ in range(TRIES)] == [False] * (TRIES - 1) + [True]
    assert scene.gaps == 1
    assert len(scene.asked.parked) == 1
    assert scene.asked.parked[0][:5] == ("s", "wal2json", "0/5", 7, "public.t")
    assert scene.asked.parked[0][-1] == payload
    assert not scene.poison.is_stuck


def test_others_of_the_same_table_are_let_go_at_once() -> None:
    scene = Scene()
    for _ in range(TRIES):
        scene.meet(TYPE)
    assert scene.meet(DEFAULT, lsn=6)
    assert scene.gaps == 1, "one for each transaction"
    assert scene.meet(DEFAULT, lsn=9, xid=8)
    assert scene.gaps == 2


def test_of_one_transaction_not_everything_is_kept() -> None:
    scene = Scene()
    for number in range(PARKED_PER_TRANSACTION + TRIES + 10):
        scene.meet(TYPE, lsn=5 if number < TRIES else number)
    assert len(scene.asked.parked) == PARKED_PER_TRANSACTION
    assert b'poison_skipped_total{what="message"} 111.0' in scene.metrics.page()[0]


def test_a_message_that_comes_well_the_next_time_is_no_poison() -> None:
    scene = Scene()
    assert not scene.meet(TYPE, lsn=5)
    assert not scene.meet(DEFAULT, lsn=6)
    assert not scene.meet(TYPE, lsn=5)
    assert not scene.poison.is_stuck


def test_the_policy_stop_lets_nothing_go() -> None:
    scene = Scene("stop")
    assert not any(scene.meet(TYPE) for _ in range(3 * TRIES))
    assert scene.poison.is_stuck
    assert (scene.gaps, scene.asked.parked) == (0, [])
    scene.poison.policy = "skip"
    assert scene.meet(TYPE)


def leave_out(scene: Scene, begun: UnderWay | None) -> list[str]:
    async def main() -> None:
        error = DatabaseRefused("invalid memory alloc request size", sqlstate="XX000")
        for _ in range(TRIES):
            await scene.poison.leave_out(error, "pgoutput", begun, Lsn(3))

    run(main)
    return [str(statement) for statement, _ in scene.asked.connection.executed]


def test_a_transaction_is_left_out_by_advancing_to_just_after_its_commit_begins() -> None:
    scene = Scene()
    assert "pg_replication_slot_advance" in leave_out(scene, UnderWay(7, 0x100))[0]
    assert scene.asked.connection.executed[0][1] == ("s", "0/101")
    assert (scene.gaps, len(scene.asked.parked)) == (1, 1)


@pytest.mark.parametrize(("policy", "begun"), [("stop", UnderWay(7, 0x100)), ("skip", None), ("skip", UnderWay(7, 0))])
def test_a_transaction_that_is_not_known_or_may_not_go_is_stood_still_for(
    policy: Policy, begun: UnderWay | None
) -> None:
    scene = Scene(policy)
    assert leave_out(scene, begun) == []
    assert scene.poison.is_stuck
    assert scene.gaps == 0


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (DatabaseRefused("x", sqlstate="54000"), True),
        (DatabaseRefused("x", sqlstate="XX000"), True),
        (DatabaseRefused("x", sqlstate="42704", reason="missing_object"), False),
        (DatabaseRefused("x", sqlstate="53200"), False),
        (DatabaseRefused("x"), False),
        (DatabaseUnreachable("x"), False),
    ],
)
def test_what_is_the_transactions_fault(error: DatabaseRefused | DatabaseUnreachable, *, is_it: bool) -> None:
    assert is_undecodable(error) is is_it


def test_who_may_want_the_table_is_told_once_for_each_transaction_and_table() -> None:
    scene = Scene()
    for _ in range(TRIES):
        scene.meet(TYPE)
    assert scene.tables == [("public", "root")]
    other = TYPE.replace(b'"table":"t"', b'"table":"Odd \\"t"')
    for _ in range(TRIES):
        scene.meet(other, lsn=6)
    assert len(scene.tables) == 2, "another table of the same transaction"
    asked = [values for statement, values in scene.asked.connection.executed if "pg_partition_root" in str(statement)]
    assert asked == [(0, "public", "t"), (0, "public", 'Odd "t')]
    scene.meet(other, lsn=7)
    assert len(scene.tables) == 2


@pytest.mark.parametrize(
    "payload", [b'{"action":"M"}', b'{"schema":"public","table":"\\x"}', TYPE, b"I\x00\x00\x40\x05N", b"M"]
)
def test_where_nobody_can_say_which_table_it_was_everybody_is_told(payload: bytes) -> None:
    """No row, no name, or a table that has been dropped since."""
    scene = Scene()
    scene.asked.connection.root = None
    for _ in range(TRIES):
        scene.meet(payload)
    assert scene.tables == [None]


def test_who_could_not_be_told_for_the_database_was_away_is_told_by_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    for _ in range(TRIES - 1):
        assert not scene.meet(TYPE)
    with monkeypatch.context() as patch:
        patch.setattr(scene.poison, "_root", away)
        with pytest.raises(DatabaseUnreachable):
            scene.meet(TYPE)
    assert scene.meet(TYPE)
    assert scene.gaps == 1


async def away(payload: bytes) -> None:
    raise DatabaseUnreachable("away")
