"""The mirror to NOTIFY without a database: what is said, in which order, and what is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.predicate.rows import TABLE
from tests.support import run
from walstream.bus.seal import TEXT_BYTES_MAX
from walstream.capture.plan import Plan, subscription_row
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.lsn import Lsn
from walstream.model import Change, Operation, Relation, Transaction
from walstream.protocol.shapes import TransactionText
from walstream.shell.channels import notify_mirror as module
from walstream.shell.channels.notify_mirror import NotifyMirror, lock_key, message
from walstream.shell.channels.notify_mouth import Saying
from walstream.shell.database.postgres import PgConnection
from walstream.shell.wal.spill import FileSpill

OTHER = Relation("public", "others", TABLE.columns, TABLE.primary_key)
MIRRORED = Plan(
    [subscription_row("1", "public.things", ["*"], notify=True), subscription_row("2", "public.others", ["*"])],
    own_schema="realtime",
)
UNMIRRORED = Plan([subscription_row("1", "public.things", ["*"])], own_schema="realtime")


def no_connection(name: str) -> PgConnection:
    raise DatabaseUnreachable("there is none")


def mirror(plan: Plan = MIRRORED) -> NotifyMirror:
    made = NotifyMirror(no_connection, "realtime", "a", lambda: "c")
    made.use(plan)
    return made


def insert(n: int, relation: Relation = TABLE, text: bytes = b'"a"') -> Change:
    return Change(relation, Operation.INSERT, (b"%d" % n, text, b"true"), None, 0, n)


def transaction(*changes: Change, size: int = 10) -> Transaction:
    return Transaction(1, Lsn(100), 1_700_000_000_000_000, changes, size=size)


def numbers(sayings: list[Saying]) -> list[int]:
    return [json.loads(saying.payload)["new"]["n"] for saying in sayings]


def scene(test: Callable[[], object]) -> None:
    async def main() -> None:
        test()

    run(main)


def test_only_what_asks_for_it_is_mirrored_in_order() -> None:
    def test() -> None:
        one = mirror()
        one.committed(transaction(insert(1), insert(2, OTHER), insert(3)))
        one.committed(transaction(insert(4, OTHER)))
        one.committed(transaction(insert(5)))
        sayings = one.take(last=False)
        assert numbers(sayings) == [1, 3, 5]
        assert {saying.channel for saying in sayings} == {"realtime:table:public.things"}
        assert one.take(last=False) == []
        assert one.sent == 3

    scene(test)


def test_it_is_needed_only_while_a_row_asks() -> None:
    def test() -> None:
        one = mirror(UNMIRRORED)
        assert not one.is_needed
        one.use(MIRRORED)
        assert one.is_needed

    scene(test)


def test_what_was_captured_under_a_plan_is_mirrored_by_it() -> None:
    def test() -> None:
        one = mirror()
        one.committed(transaction(insert(1)))
        one.use(UNMIRRORED)
        one.committed(transaction(insert(2)))
        assert numbers(one.take(last=False)) == [1]

    scene(test)


def test_a_transaction_in_a_file_is_mirrored_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    spill = FileSpill()
    for n in range(100):
        spill.append(insert(n, TABLE if n % 2 else OTHER))

    def test() -> None:
        one = mirror()
        one.committed(Transaction(1, Lsn(100), 0, spill.changes()))
        seen, turns = [], 0
        while turn := one.take(last=False):
            seen += numbers(turn)
            turns += 1
        assert seen == list(range(1, 100, 2))
        assert turns > 5

    scene(test)


def test_of_too_many_the_newest_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 25)

    def test() -> None:
        one = mirror()
        for n in range(4):
            one.committed(transaction(insert(n), size=10))
        assert one.dropped == 2
        assert numbers(one.take(last=False)) == [0, 1]
        one.committed(transaction(insert(9), size=1000))  # one alone may be as large as it likes
        assert numbers(one.take(last=False)) == [9]

    scene(test)


def test_what_may_not_have_been_said_is_said_again_and_what_is_refused_is_not() -> None:
    def test() -> None:
        one = mirror()
        one.committed(transaction(insert(1)))
        said = one.take(last=False)
        one.unsaid(said, DatabaseUnreachable("gone"))
        assert one.take(last=False) == said
        one.unsaid(said, DatabaseRefused("no"))
        assert one.take(last=False) == []
        assert (one.sent, one.dropped) == (0, 1)

    scene(test)


def test_each_schema_has_a_lock_of_its_own() -> None:
    assert lock_key("realtime") != lock_key("other")
    assert -(2**63) <= lock_key("realtime") < 2**63


@given(st.integers(0, 9000), st.sampled_from(Operation))
def test_a_message_fits_whatever_the_row(size: int, operation: Operation) -> None:
    row = (b"1", b'"%b"' % (b"x" * size), b"true")
    new = row if operation in (Operation.INSERT, Operation.UPDATE) else None
    old = row if operation in (Operation.UPDATE, Operation.DELETE) else None
    change = Change(TABLE, operation, new, old, 0, 7)
    text = message(change, TransactionText.of(transaction(change), "c"), last=True)
    told = json.loads(text)
    assert len(text.encode()) <= TEXT_BYTES_MAX
    assert (told["operation"], told["table"], told["last"]) == (operation.value, "things", True)
    assert told["position"].endswith(".7")
    if "truncated" in told:
        assert (told["new"] or told["old"])["n"] == 1
    elif new:
        assert told["new"]["t"] == "x" * size


def test_a_row_of_many_small_values_is_left_out() -> None:
    columns = tuple(type(TABLE.columns[0])(f"c{n}", 25, "text") for n in range(200))
    wide = Relation("public", "wide", columns, ("c0",))
    row = tuple(b'"%b"' % (b"y" * 50) for _ in columns)
    change = Change(wide, Operation.UPDATE, row, row, 0, 0)
    told = json.loads(message(change, TransactionText.of(transaction(change), "c"), last=False))
    assert (told["truncated"], told["operation"]) == (True, "UPDATE")
    assert not told["new"]
    assert not told["old"]
