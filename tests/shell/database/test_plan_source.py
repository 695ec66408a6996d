"""The plan as the WAL changes it: the same as if the table were read again."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from walstream.capture.plan import Plan, subscription_row
from walstream.model import Change, Column, Operation, Relation, Row
from walstream.shell.database.plan_source import applied

NAMES = ("id", "table_name", "events", "filter", "columns", "notify", "created_at")
RELATION = Relation("realtime", "subscriptions", tuple(Column(name, 25, "text") for name in NAMES), ("id",))
_encode = msgspec.json.Encoder().encode
LONG = "id = 7"


def row(number: int, table: str = "public.t", **values: Any) -> dict[str, Any]:
    usual = {
        "id": number, "table_name": table, "events": ["*"], "filter": None, "columns": None, "notify": False,
        "created_at": "2026-01-01",
    }  # fmt: skip
    return {**usual, **values}


def cells(values: dict[str, Any], *unchanged: str) -> Row:
    return tuple(None if name in unchanged else _encode(values[name]) for name in NAMES)


def key(number: int) -> Row:
    return tuple(b"%d" % number if name == "id" else None for name in NAMES)


def change(operation: Operation, new: Row | None = None, old: Row | None = None) -> Change:
    return Change(RELATION, operation, new, old, 0, 0)


def plan(*rows: dict[str, Any]) -> Plan:
    return Plan(
        [
            subscription_row(
                str(each["id"]), each["table_name"], each["events"], each["filter"], each["columns"],
                notify=each["notify"],
            )
            for each in rows
        ],
        own_schema="realtime",
    )  # fmt: skip


tables = st.sampled_from(["public.t", "public.u", "shop.*", "*.*", "nonsense..", "t"])
values = st.fixed_dictionaries(
    {
        "table_name": tables,
        "events": st.lists(st.sampled_from(["INSERT", "UPDATE", "*", "nonsense"]), max_size=2),
        "filter": st.sampled_from([None, "", "id > 1", "this is no filter"]),
        "columns": st.none() | st.lists(st.sampled_from(["id", "v"]), max_size=2),
        "notify": st.booleans(),
    }
)
statements = st.one_of(
    st.tuples(st.just("insert"), st.integers(1, 4), values),
    st.tuples(st.just("update"), st.integers(1, 4), values),
    st.tuples(st.just("renumber"), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.just("delete"), st.integers(1, 4)),
    st.tuples(st.just("truncate")),
)


@given(st.lists(statements, max_size=12), st.booleans())
def test_it_is_always_what_the_table_says(done: list[tuple[Any, ...]], twice: bool) -> None:
    table: dict[int, dict[str, Any]] = {}
    changes = []
    for kind, *rest in done:
        match kind, rest:
            case "insert", (number, some) if number not in table:
                table[number] = row(number, **some)
                changes.append(change(Operation.INSERT, cells(table[number])))
            case "update", (number, some) if number in table:
                table[number] = row(number, **some)
                changes.append(change(Operation.UPDATE, cells(table[number])))
            case "renumber", (number, other) if number in table and other not in table:
                table[other] = {**table.pop(number), "id": other}
                changes.append(change(Operation.UPDATE, cells(table[other]), key(number)))
            case "delete", (number,) if number in table:
                del table[number]
                changes.append(change(Operation.DELETE, None, key(number)))
            case "truncate", ():
                table.clear()
                changes.append(change(Operation.TRUNCATE))
    found = applied(plan(), changes)
    if twice:
        found = applied(found, changes)  # read again: a snapshot is older than the rows that were loaded
    assert found.rows == plan(*table.values()).rows


def test_a_long_filter_that_an_update_leaves_out_stays_in_force() -> None:
    """PostgreSQL does not write long values that do not change."""
    before = row(1, filter=LONG, columns=["id"])
    update = change(Operation.UPDATE, cells({**before, "events": ["INSERT"]}, "filter", "columns"))
    found = applied(plan(before), [update]).rows[0]
    assert found == plan({**before, "events": ["INSERT"]}).rows[0]


def test_a_long_filter_that_nobody_knows_captures_nothing() -> None:
    update = change(Operation.UPDATE, cells(row(1, filter=LONG), "filter"))
    found = applied(plan(), [update])
    assert found.rows[0].problem
    assert not found.wanted("public", "t")


def test_a_long_filter_of_a_renumbered_row_stays_in_force() -> None:
    before = row(1, filter=LONG)
    update = change(Operation.UPDATE, cells({**before, "id": 2}, "filter"), key(1))
    assert applied(plan(before), [update]).rows == plan({**before, "id": 2}).rows
