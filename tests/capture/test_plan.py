"""The plan: which row applies to a table, and what of its changes passes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.capture import (
    ALL_EVENTS,
    ROW_EVENTS,
    Plan,
    SubscriptionRow,
    parse_events,
    parse_table_pattern,
    subscription_row,
)
from walstream.capture.plan import Admission
from walstream.errors import FilterError
from walstream.model import Catalog, Change, Column, Operation, Relation, Row

COLUMNS = (
    Column("id", 23, "int4"),
    Column("name", 25, "text"),
    Column("secret", 25, "text"),
    Column("at", 1082, "date"),
)
USERS = Relation("public", "users", COLUMNS, ("id",))
ANNA: Row = (b"1", b'"anna"', b'"x"', b'"2024-02-29"')
BERT: Row = (b"2", b'"bert"', b'"y"', b"null")


def row(
    id_: str, table: str, events: str = "*", filter_text: str | None = None, columns: str | None = None
) -> SubscriptionRow:
    return subscription_row(id_, table, events.split(","), filter_text, columns.split(",") if columns else None)


def plan(*rows: SubscriptionRow, publication: frozenset[tuple[str, str]] = frozenset()) -> Plan:
    return Plan(rows, own_schema="realtime", publication_tables=publication)


def applied(made: Plan, schema: str, table: str) -> str | None:
    found = made.row_for(schema, table)
    return None if found is None else found.id


def admission(made: SubscriptionRow, relation: Relation = USERS) -> Admission | None:
    return plan(made).admission(relation, Catalog(), {})


def insert(new: Row) -> Change:
    return Change(USERS, Operation.INSERT, new, None, 7, 3)


def update(old: Row | None, new: Row) -> Change:
    return Change(USERS, Operation.UPDATE, new, old, 7, 3)


def delete(old: Row | None) -> Change:
    return Change(USERS, Operation.DELETE, None, old, 7, 3)


TRUNCATE = Change(USERS, Operation.TRUNCATE, None, None, 7, 3)


def passes(made: SubscriptionRow, change: Change) -> bool:
    found = admission(made)
    assert found is not None
    return found.admit(change) is not None


# -- which row applies


def test_the_most_specific_row_alone_applies() -> None:
    made = plan(row("1", "*.*"), row("2", "public.*"), row("3", "public.users"))
    assert applied(made, "public", "users") == "3"
    assert applied(made, "public", "posts") == "2"
    assert applied(made, "other", "users") == "1"


@given(st.permutations(["*", "public.*", "public.users", "other.users", "realtime.messages"]))
def test_the_order_in_which_rows_come_does_not_count(patterns: list[str]) -> None:
    made = plan()
    for pattern in patterns:
        made = made.with_row(row(pattern, pattern))
    assert applied(made, "public", "users") == "public.users"
    assert applied(made, "public", "posts") == "public.*"
    assert applied(made, "other", "posts") == "*"
    assert applied(made, "realtime", "messages") == "realtime.messages"


def test_everything_leaves_out_system_schemas_and_our_own() -> None:
    made = plan(row("1", "*"))
    for schema in ("pg_catalog", "information_schema", "pg_toast", "pg_temp_3", "realtime"):
        assert not made.wanted(schema, "x")
    assert made.wanted("public", "x")
    assert plan(row("1", "realtime.*")).wanted("realtime", "x")


def test_a_table_of_the_publication_is_captured_whole_unless_a_row_matches_it() -> None:
    made = plan(publication=frozenset({("public", "users")}))
    found = made.admission(USERS, Catalog(), {})
    assert found is not None
    for change in (insert(ANNA), update(None, ANNA), delete(ANNA), TRUNCATE):
        assert found.admit(change) is change
    assert not made.wanted("public", "posts")
    assert applied(made.with_row(row("9", "public.users", "INSERT")), "public", "users") == "9"


def test_a_row_for_nothing_that_exists_wants_nothing_else() -> None:
    assert not plan().wanted("public", "users")
    assert plan().admission(USERS, Catalog(), {}) is None


def test_capitals_without_quotes_capture_the_table_that_is_there() -> None:
    made = plan(row("1", "public.Users"), row("2", 'public."Posts"'))
    assert applied(made, "public", "users") == "1"
    assert applied(made, "public", "Users") == "1"
    assert applied(made, "public", "posts") is None
    assert applied(made, "public", "Posts") == "2"


def test_an_exact_name_comes_before_another_rows_second_spelling() -> None:
    made = plan(row("1", "public.Users"), row("2", 'public."Users"'))
    assert applied(made, "public", "Users") == "2"
    assert applied(made, "public", "users") == "1"


# -- rows that cannot be


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (row("1", "a.b.c"), "not the name of a table"),
        (row("1", "public.users", "UPSERT"), "'UPSERT' is not an event"),
        (row("1", "public.users", " "), "is not an event"),
        (subscription_row("1", "public.users", []), "no events"),
        (row("1", "public.users", "*", "name ="), "expected a value"),
        (row("1", "users"), "the table users is named without its schema"),
    ],
)
def test_a_row_that_says_nothing_is_reported_and_captures_nothing(made: SubscriptionRow, said: str) -> None:
    (problem,) = plan(made).problems
    assert problem.row_id == "1"
    assert said in problem.message
    assert not plan(made).wanted("public", "users")
    assert plan(made).admission(USERS, Catalog(), {}) is None
    assert plan(made).literals_needed(USERS) == frozenset()


def test_a_row_that_says_nothing_still_shadows_the_wider_ones() -> None:
    made = plan(row("1", "public.users", "*", "name ="), row("2", "public.*"))
    assert not made.wanted("public", "users")
    assert made.wanted("public", "posts")


def test_a_second_row_for_the_same_table_is_reported() -> None:
    made = plan(row("2", '"public"."users"'), row("1", "public.users"))
    assert applied(made, "public", "users") == "1"
    assert [(problem.row_id, "subscription 1" in problem.message) for problem in made.problems] == [("2", True)]


def test_a_filter_that_does_not_fit_captures_nothing_and_is_reported_until_it_fits() -> None:
    made = plan(row("1", "public.users", "*", "nope = 1"))
    assert made.faults(USERS) == ()
    assert made.admission(USERS, Catalog(), {}) is None
    (fault,) = made.faults(USERS)
    assert fault.row_id == "1"
    assert "invalid column for filter nope" in fault.message
    wider = Relation("public", "users", (*COLUMNS, Column("nope", 23, "int4")), ("id",))
    assert made.admission(wider, Catalog(), {}) is not None
    assert made.faults(wider) == ()


def test_literals_are_asked_for_by_the_row_that_applies() -> None:
    made = plan(row("1", "public.users", "*", "at > 'today'"))
    assert made.literals_needed(USERS) == {(1082, "today")}
    assert made.literals_needed(Relation("public", "posts", COLUMNS)) == frozenset()
    assert made.admission(USERS, Catalog(), {}) is None
    found = made.admission(USERS, Catalog(), {(1082, "today"): b'"2024-01-01"'})
    assert found is not None
    assert found.admit(insert(ANNA)) is not None
    assert found.admit(insert(BERT)) is None


# -- what passes


@given(st.sets(st.sampled_from(["INSERT", "UPDATE", "DELETE", "TRUNCATE"]), min_size=1))
def test_only_the_events_of_the_row_pass(events: set[str]) -> None:
    made = row("1", "public.users", ",".join(events))
    for change in (insert(ANNA), update(ANNA, BERT), delete(ANNA), TRUNCATE):
        assert passes(made, change) is (change.operation.value in events)


def test_the_filter_sees_the_new_row_and_of_a_delete_the_old_one() -> None:
    made = row("1", "public.users", "*,TRUNCATE", "name = 'anna'")
    assert passes(made, insert(ANNA))
    assert not passes(made, insert(BERT))
    assert passes(made, update(BERT, ANNA))
    assert not passes(made, update(ANNA, BERT))
    assert passes(made, delete(ANNA))
    assert not passes(made, delete(BERT))
    assert passes(made, TRUNCATE)


def test_unknown_is_no_match_whichever_way_the_filter_is_turned() -> None:
    key_only: Row = (b"1", None, None, None)
    for text in ("name = 'anna'", "not name = 'anna'", "name is null", "name is not null"):
        made = row("1", "public.users", "*", text)
        assert not passes(made, delete(key_only))
        assert not passes(made, delete(None))
    assert passes(row("1", "public.users", "*", "id = 1"), delete(key_only))


def test_a_change_that_is_not_cut_is_passed_on_as_it_is() -> None:
    change = insert(ANNA)
    for columns in (None, "id,name,secret,at"):
        found = admission(row("1", "public.users", columns=columns))
        assert found is not None
        assert found.admit(change) is change
        assert found.relation is USERS


def test_columns_are_cut_from_both_rows_and_the_key_stays() -> None:
    found = admission(row("1", "public.users", "*,TRUNCATE", "secret = 'x'", "name"))
    assert found is not None
    change = found.admit(update(BERT, ANNA))
    assert change is not None
    assert change.relation is found.relation
    assert [column.name for column in change.relation.columns] == ["id", "name"]
    assert (change.relation.schema, change.relation.name, change.relation.primary_key) == ("public", "users", ("id",))
    assert (change.new, change.old, change.lsn, change.ordinal) == ((b"1", b'"anna"'), (b"2", b'"bert"'), 7, 3)
    assert found.admit(insert(BERT)) is None, "the filter sees columns that are cut"
    truncated = found.admit(TRUNCATE)
    assert truncated is not None
    assert (truncated.new, truncated.old, truncated.relation) == (None, None, found.relation)


@given(st.sets(st.sampled_from([column.name for column in COLUMNS])))
def test_every_cut_row_is_as_long_as_its_relation(columns: set[str]) -> None:
    found = admission(msgspec.structs.replace(row("1", "public.users"), columns=tuple(columns)))
    assert found is not None
    change = found.admit(update(ANNA, BERT))
    assert change is not None
    assert change.new is not None
    assert change.old is not None
    assert len(change.new) == len(change.old) == len(change.relation.columns)
    assert {column.name for column in change.relation.columns} == columns | {"id"}
    for name, place in change.relation.positions.items():
        assert change.new[place] == BERT[USERS.positions[name]]


def test_a_column_that_is_gone_is_reported_and_the_others_are_captured() -> None:
    made = plan(row("1", "public.users", columns="name,gone"))
    found = made.admission(USERS, Catalog(), {})
    assert found is not None
    assert [column.name for column in found.relation.columns] == ["id", "name"]
    (fault,) = made.faults(USERS)
    assert fault.message == "public.users has no column gone"


# -- plans are values


def test_a_plan_with_a_row_or_without_it_is_another_one() -> None:
    first = plan(row("1", "public.users", "INSERT"), publication=frozenset({("a", "b")}))
    second = first.with_row(row("2", "public.posts"))
    replaced = second.with_row(row("1", "public.users", "DELETE"))
    assert len(first.rows) == 1
    assert [found.id for found in second.rows] == ["1", "2"]
    assert replaced.rows[0].events == {Operation.DELETE}
    assert len(replaced.rows) == 2
    assert replaced.without("1").wanted("public", "users") is False
    assert replaced.without("1").wanted("a", "b") is True
    assert replaced.without("nobody").rows == replaced.rows
    assert replaced.own_schema == "realtime"


@pytest.mark.parametrize(
    ("names", "events"),
    [
        ([" insert", "Update "], {Operation.INSERT, Operation.UPDATE}),
        (["DELETE", "delete"], {Operation.DELETE}),
        (["*"], ROW_EVENTS),
        (["*", "truncate"], ALL_EVENTS),
    ],
)
def test_events_are_read_in_any_case_each_once(names: list[str], events: set[Operation]) -> None:
    assert parse_events(names) == events


@pytest.mark.parametrize("names", [[], ["upsert"], ["insert", ""]])
def test_what_is_no_event_is_refused(names: list[str]) -> None:
    with pytest.raises(FilterError):
        parse_events(names)


def test_a_row_keeps_what_it_was_given() -> None:
    made = subscription_row("1", "public.users", ["insert"], "  ", ["a", "b", "a"], notify=True)
    assert made == SubscriptionRow(
        "1", parse_table_pattern("public.users"), frozenset({Operation.INSERT}), None, ("a", "b"), True
    )
