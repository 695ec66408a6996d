"""The tally: a change counts once its transaction is committed, for the row of the plan that let it through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walstream.capture import Fault, Plan, subscription_row
from walstream.capture.plan import Admission
from walstream.capture.tally import FAULTS_TOLD_MAX, Captured, Tally, errors
from walstream.model import Catalog, Column, Relation

EVENTS = ["*"]


def relation(name: str, *columns: str) -> Relation:
    return Relation("public", name, tuple(Column(column, 25, "text") for column in ("id", *columns)), ("id",))


def plan(*rows: tuple[str, str, str | None]) -> Plan:
    return Plan([subscription_row(id_, table, EVENTS, text) for id_, table, text in rows], own_schema="realtime")


def admissions(made: Plan, *names: str) -> list[Admission]:
    found = [made.admission(relation(name), Catalog(), {}) for name in names]
    return [admission for admission in found if admission is not None]


def let_through(tally: Tally, admission: Admission, count: int = 1) -> None:
    """What is done for each change, as the pipeline does it."""
    for _ in range(count):
        if not admission.pending:
            tally.touch(admission)
        admission.pending += 1


def test_an_admission_knows_its_row() -> None:
    made = plan(("a", "public.users", None), ("b", "public.*", None))
    assert [admission.row_id for admission in admissions(made, "users", "orders", "things")] == ["a", "b", "b"]


def test_changes_count_when_they_are_committed() -> None:
    tally = Tally()
    users, orders, things = admissions(plan(("a", "public.users", None), ("b", "public.*", None)), "users", "o", "t")
    let_through(tally, users, 3)
    let_through(tally, orders)
    assert tally["a"] == Captured()
    tally.commit(1000)
    assert (tally["a"], tally["b"]) == (Captured(3, 1000), Captured(1, 1000))
    let_through(tally, things, 2)
    tally.commit(900)
    assert tally["a"] == Captured(3, 1000)
    assert tally["b"] == Captured(3, 1000), "commits are not in the order of their times"
    tally.commit(2000)
    assert tally["b"] == Captured(3, 1000), "a transaction without its changes"


def test_what_was_cut_off_does_not_count() -> None:
    tally = Tally()
    (users,) = admissions(plan(("a", "public.users", None)), "users")
    let_through(tally, users, 5)
    tally.forget()
    let_through(tally, users, 2)
    tally.commit(7)
    assert tally["a"] == Captured(2, 7)


def test_rows_that_have_gone_are_forgotten() -> None:
    tally = Tally()
    users, orders = admissions(plan(("a", "public.users", None), ("b", "public.*", None)), "users", "orders")
    let_through(tally, users)
    let_through(tally, orders)
    tally.commit(7)
    tally.retain(["b", "c"])
    assert (tally["a"], tally["b"]) == (Captured(), Captured(1, 7))


@given(st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["commit", "forget"])), max_size=60))
def test_the_tally_is_that_of_a_list(steps: list[int | str]) -> None:
    tally, at = Tally(), 0
    made = plan(("a", "public.users", None), ("b", "public.*", None))
    admitted = admissions(made, "users", "orders", "things")
    pending: list[str] = []
    committed: list[tuple[str, int]] = []
    for step in steps:
        if isinstance(step, int):
            let_through(tally, admitted[step])
            pending.append(admitted[step].row_id)
            continue
        if step == "commit":
            at += 1
            tally.commit(at)
            committed += [(row_id, at) for row_id in pending]
        else:
            tally.forget()
        pending = []
    for row_id in "ab":
        times = [at for each, at in committed if each == row_id]
        assert tally[row_id] == Captured(len(times), max(times, default=0))


def test_errors_are_those_of_rows_and_of_tables_as_they_are_now() -> None:
    made = plan(("a", "users", None), ("b", "public.users", "age is null"), ("c", "public.orders", None))
    assert errors(made) == {"a": "the table users is named without its schema"}
    made.admission(relation("users"), Catalog(), {})
    assert errors(made)["b"].startswith("the filter does not fit public.users: ")
    made.admission(relation("users", "age"), Catalog(), {})
    assert errors(made).keys() == {"a"}


def test_of_a_wildcards_errors_some_are_told() -> None:
    made = plan(("a", "public.*", "age is null"))
    for number in range(FAULTS_TOLD_MAX + 2):
        made.admission(relation(f"table_{number}"), Catalog(), {})
    assert len(made.current_faults) == FAULTS_TOLD_MAX + 2
    assert made.current_faults[0] == Fault("a", errors(made)["a"].split("; ")[0])
    assert errors(made)["a"].endswith("; and 2 more")
