"""The bytes of a change as clients read them, against the wire format's rules."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.model import Cell, Change, Column, Operation, Relation, ReplicaIdentity, Row
from walstream.protocol.changes import (
    UNAUTHORIZED,
    Moment,
    commit_timestamp,
    render,
    render_feed,
    renderer,
    unix_seconds,
)

COLUMNS = (Column("id", 20, "int8"), Column("title", 25, "text"), Column("tags", 1009, "_text"))
TODOS = Relation("public", "todos", COLUMNS, ("id",))
FULL = Relation("public", "todos", COLUMNS, ("id",), ReplicaIdentity.FULL)
KEYLESS = Relation("public", "log", COLUMNS, (), ReplicaIdentity.FULL)
ROW: Row = (b"42", b'"milk"', b'["a","b"]')
KEY: Row = (b"42", None, None)
VALUES = {"id": 42, "title": "milk", "tags": ["a", "b"]}
AT = 1_772_366_400_123_456
SHOWN = [{"name": "id", "type": "int8"}, {"name": "title", "type": "text"}, {"name": "tags", "type": "_text"}]


def insert(relation: Relation = TODOS, new: Row = ROW) -> Change:
    return Change(relation, Operation.INSERT, new, None, 1)


def update(relation: Relation = TODOS, new: Row = ROW, old: Row | None = KEY) -> Change:
    return Change(relation, Operation.UPDATE, new, old, 1)


def delete(relation: Relation = TODOS, old: Row = KEY) -> Change:
    return Change(relation, Operation.DELETE, None, old, 1)


def data(change: Change, *, last: bool = False, select: tuple[str, ...] | None = None, size: int = 1 << 20) -> object:
    text = render(
        change, commit_timestamp=commit_timestamp(AT), position=b"p", last=last, select=select, max_record_bytes=size
    )
    return json.loads(text)


def whole(operation: str, **rows: object) -> dict[str, object]:
    return {
        "schema": "public",
        "table": "todos",
        "commit_timestamp": "2026-03-01T12:00:00.123Z",
        "type": operation,
        "columns": SHOWN,
        **rows,
        "errors": None,
        "position": "p",
    }


def test_an_insert_has_no_old_record() -> None:
    assert data(insert()) == whole("INSERT", record=VALUES)


def test_an_update_has_both_records() -> None:
    assert data(update()) == whole("UPDATE", record=VALUES, old_record={"id": 42})


def test_a_delete_has_no_record() -> None:
    assert data(delete()) == whole("DELETE", old_record={"id": 42})


def test_an_update_that_left_the_key_alone_has_the_key_in_its_old_record() -> None:
    assert data(update(old=None)) == whole("UPDATE", record=VALUES, old_record={"id": 42})


def test_the_old_record_of_an_unknown_old_row_is_empty() -> None:
    by_index = Relation("public", "todos", COLUMNS, ("id",), ReplicaIdentity.INDEX)
    assert data(update(by_index, old=None)) == whole("UPDATE", record=VALUES, old_record={})


def test_full_identity_gives_the_whole_old_record() -> None:
    old: Row = (b"42", b'"bread"', b"null")
    expected = {"id": 42, "title": "bread", "tags": None}
    assert data(update(FULL, old=old)) == whole("UPDATE", record=VALUES, old_record=expected)
    assert data(delete(FULL, old)) == whole("DELETE", old_record=expected)


def test_a_value_that_the_wal_does_not_carry_is_left_out() -> None:
    record = {"id": 42, "tags": ["a", "b"]}
    assert data(update(new=(b"42", None, ROW[2]))) == whole("UPDATE", record=record, old_record={"id": 42})


def test_under_full_identity_an_unchanged_value_comes_from_the_old_row() -> None:
    change = update(FULL, new=(b"42", None, b"[]"), old=(b"42", b'"long"', b"null"))
    expected = {"id": 42, "title": "long", "tags": []}
    old = {"id": 42, "title": "long", "tags": None}
    assert data(change) == whole("UPDATE", record=expected, old_record=old)


def test_only_the_last_change_of_a_transaction_says_so() -> None:
    assert data(insert(), last=True) == whole("INSERT", record=VALUES) | {"last": True}


def test_a_selection_shows_its_columns_and_the_primary_key_in_table_order() -> None:
    selected = whole("UPDATE", record={"id": 42, "tags": ["a", "b"]}, old_record={"id": 42})
    assert data(update(), select=("tags",)) == selected | {"columns": [SHOWN[0], SHOWN[2]]}


@pytest.mark.parametrize("select", [(), ("id",), ("gone",)])
def test_a_selection_of_the_key_alone_shows_the_key(select: tuple[str, ...]) -> None:
    assert data(insert(), select=select) == whole("INSERT", record={"id": 42}) | {"columns": SHOWN[:1]}


def test_a_selection_without_any_column_shows_none() -> None:
    assert data(delete(KEYLESS, ROW), select=()) == whole("DELETE", old_record={}) | {"table": "log", "columns": []}


@pytest.mark.parametrize(
    ("change", "records"),
    [(insert(KEYLESS), {"record": {}}), (update(KEYLESS, old=ROW), {"record": {}, "old_record": {}})],
)
def test_a_table_without_primary_key_gives_error_400(change: Change, records: dict[str, object]) -> None:
    expected = whole(change.operation.value, **records)
    expected |= {"table": "log", "columns": [], "errors": ["Error 400: Bad Request, no primary key"]}
    assert data(change) == expected
    assert data(change, last=True) == expected | {"last": True}


def test_a_delete_without_primary_key_is_delivered() -> None:
    assert data(delete(KEYLESS, ROW)) == whole("DELETE", old_record=VALUES) | {"table": "log"}


def test_a_change_that_may_not_be_seen_shows_nothing() -> None:
    text = renderer(TODOS, None).error(Operation.UPDATE, UNAUTHORIZED, commit_timestamp(AT), b"p", last=False)
    expected = whole("UPDATE", record={}, old_record={}) | {"columns": [], "errors": ["Error 401: Unauthorized"]}
    assert json.loads(text) == expected


def test_a_change_above_the_limit_keeps_small_values_only() -> None:
    large = b'"' + b"x" * 63 + b'"'
    kept = b'"' + b"y" * 62 + b'"'
    change = update(FULL, new=(b"42", large, kept), old=(b"41", b'"a"', large))
    expected = whole("UPDATE", record={"id": 42, "tags": "y" * 62}, old_record={"id": 41, "title": "a"})
    assert data(change, size=100) == expected | {"errors": ["Error 413: Payload Too Large"]}


@pytest.mark.parametrize("change", [insert(), update(), update(old=None), delete()])
def test_the_limit_counts_the_whole_text(change: Change) -> None:
    size = len(render(change, commit_timestamp=commit_timestamp(AT), position=b"p", last=False))
    whole_data, cut = data(change, size=size), data(change, size=size - 1)
    assert isinstance(whole_data, dict) and isinstance(cut, dict)
    assert whole_data["errors"] is None
    assert cut == whole_data | {"errors": ["Error 413: Payload Too Large"]}


def test_an_oversized_update_never_shows_an_old_value_as_the_new_one() -> None:
    large = b'"' + b"x" * 100 + b'"'
    change = update(FULL, new=(b"42", large, b"[]"), old=(b"42", b'"old"', b"[]"))
    expected = whole("UPDATE", record={"id": 42, "tags": []}, old_record={"id": 42, "title": "old", "tags": []})
    assert data(change, size=10) == expected | {"errors": ["Error 413: Payload Too Large"]}


def feed(change: Change, *, last: bool = False, size: int = 1 << 20) -> object:
    moment = Moment(AT, 731)
    return json.loads(render_feed(change, moment=moment, position=b"p", last=last, max_record_bytes=size))


def message(operation: str, new: object = None, old: object = None) -> dict[str, object]:
    return {
        "timestamp": 1772366400.123456,
        "operation": operation,
        "schema": "public",
        "table": "todos",
        "new": new,
        "old": old,
        "commit_timestamp": "2026-03-01T12:00:00.123Z",
        "position": "p",
        "xid": 731,
    }


def test_the_table_feed_has_the_rows_of_each_operation() -> None:
    assert feed(insert()) == message("INSERT", new=VALUES)
    assert feed(update()) == message("UPDATE", new=VALUES, old={"id": 42})
    assert feed(delete(), last=True) == message("DELETE", old={"id": 42}) | {"last": True}
    assert feed(Change(TODOS, Operation.TRUNCATE, None, None, 1)) == message("TRUNCATE")


def test_the_table_feed_needs_no_primary_key() -> None:
    assert feed(insert(KEYLESS)) == message("INSERT", new=VALUES) | {"table": "log"}


def test_the_table_feed_says_when_values_were_too_large() -> None:
    change = insert(new=(b"42", b'"' + b"x" * 100 + b'"', b"[]"))
    errors = ["Error 413: Payload Too Large"]
    assert feed(change, size=50, last=True) == message("INSERT", new={"id": 42, "tags": []}) | {
        "errors": errors,
        "last": True,
    }


@given(
    st.integers(0, 253_402_214_400_000_000).map(
        lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    )
)
def test_commit_timestamps_are_utc_milliseconds_rounded_down(moment: datetime) -> None:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    microseconds = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    text = commit_timestamp(microseconds).decode()
    assert datetime.fromisoformat(text) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert len(text) == len("2026-03-01T12:00:00.123Z")


@given(st.integers())
def test_commit_timestamps_of_any_number_are_times(microseconds: int) -> None:
    datetime.fromisoformat(commit_timestamp(microseconds).decode())


@given(st.lists(st.integers(0, 4 * 10**15), min_size=2).map(sorted))
def test_unix_seconds_keep_the_order_of_commits(moments: list[int]) -> None:
    texts = [json.loads(unix_seconds(moment)) for moment in moments]
    assert all(earlier <= later for earlier, later in pairwise(texts))


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
cells: st.SearchStrategy[Cell] = (
    st.none() | st.integers().map(lambda n: str(n).encode()) | names.map(lambda text: json.dumps(text).encode())
)


@given(st.data())
def test_a_rendered_row_holds_exactly_the_known_cells(draw: st.DataObject) -> None:
    columns = draw.draw(st.lists(names, unique=True, max_size=6))
    relation = Relation(
        draw.draw(names),
        draw.draw(names),
        tuple(Column(name, 25, "text") for name in columns),
        tuple(draw.draw(st.sets(st.sampled_from(columns), min_size=1))) if columns else ("gone",),
        draw.draw(st.sampled_from([ReplicaIdentity.FULL, ReplicaIdentity.INDEX])),
    )
    rows = st.tuples(*[cells for _ in columns])
    select = draw.draw(st.none() | st.lists(st.sampled_from(columns)).map(tuple)) if columns else None
    change = Change(relation, Operation.UPDATE, draw.draw(rows), draw.draw(rows), 1)
    assert change.new is not None and change.old is not None
    shown = [name for name in columns if select is None or name in select or name in relation.primary_key]
    result = data(change, select=select)
    assert isinstance(result, dict)
    assert [column["name"] for column in result["columns"]] == shown
    after = dict(zip(columns, change.new, strict=True))
    before = dict(zip(columns, change.old, strict=True))
    merged = {name: before[name] if after[name] is None else after[name] for name in shown}
    assert result["record"] == {name: json.loads(cell) for name, cell in merged.items() if cell is not None}
    assert result["old_record"] == {
        name: json.loads(cell) for name, cell in before.items() if cell is not None and name in shown
    }
