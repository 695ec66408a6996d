"""The router finds exactly the bindings whose filters a change satisfies, through joins, leaves and altered tables."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.predicate.rows import COLUMNS, catalog, expressions, rows
from walstream.model import Catalog, Change, Column, Operation, Relation, Row, TypeInfo
from walstream.policy import Ask, Guard, Sifted, Viewer
from walstream.predicate import columns_of, compile  # noqa: A004
from walstream.predicate.expression import Expression
from walstream.router import Binding, Router, parse_filter
from walstream.router.binding import Event, first_id, next_id
from walstream.router.index import STATES_PER_TABLE

THINGS = Relation("public", "things", COLUMNS, ("n",))
OTHERS = Relation("app", "things", COLUMNS, ("n",))
ONE: Row = (b"1", b'"a"', b"true")
TWO: Row = (b"2", b'"b"', b"null")


def insert(row: Row, relation: Relation = THINGS) -> Change:
    return Change(relation, Operation.INSERT, row, None, 0)


def delete(row: Row | None, relation: Relation = THINGS) -> Change:
    return Change(relation, Operation.DELETE, None, row, 0)


def binding(text: str = "", event: Event = "*", schema: str = "public", table: str = "things") -> Binding:
    return Binding(event, schema, table, parse_filter(text))


VIEWERS = (Viewer("anon", "{}"), Viewer("user", '{"sub":"1"}'), Viewer("user", '{"sub":"2"}'))
ASK = Ask("public", "things", "n > 0", (("n", "integer"),))
guards: st.SearchStrategy[Guard] = st.one_of(
    st.booleans(),
    st.just(ASK),
    st.sampled_from(["n=eq.1", "n=eq.2,t=eq.a", "or(n.eq.1,b.is.true)", "n=gt.1", "t=in.(a,b)"]).map(
        lambda text: Sifted(some(parse_filter(text)), {})
    ),
)


def some(expression: Expression | None) -> Expression:
    assert expression is not None
    return expression


class Guards:
    """What viewers see, which may change. Nothing, of what nothing was said of."""

    def __init__(self) -> None:
        self.known: dict[tuple[Viewer, str], Guard] = {}

    def __call__(self, viewer: Viewer, relation: Relation) -> Guard:
        return self.known.get((viewer, relation.schema), False)


def router(*bindings: Binding) -> Router:
    made = Router(catalog(THINGS, OTHERS))
    for each in bindings:
        made.add(each, {})
    return made


def matched(made: Router, change: Change) -> set[int]:
    found = made.match(change)
    assert len({each.id for each in found}) == len(found)
    return {each.id for each in found}


def deciding(change: Change) -> Row | None:
    new, old = change.new, change.old
    if change.operation is Operation.DELETE or new is None:
        return old if change.operation is Operation.DELETE else None
    return tuple(cell if cell is not None or old is None else old[at] for at, cell in enumerate(new))


def sees(guard: Guard, change: Change) -> bool:
    """Whether a viewer may get a change, as far as it is known here. That a table was emptied is no row."""
    row = deciding(change)
    if not isinstance(guard, Sifted) or change.operation is Operation.TRUNCATE:
        return bool(guard)
    return row is not None and compile(guard.expression, change.relation, catalog(THINGS, OTHERS), {})(row) is True


def wants(each: Binding, change: Change) -> bool:
    """What a binding means, without any index."""
    relation, operation = change.relation, change.operation
    if each.schema not in ("*", relation.schema) or each.table not in ("*", relation.name) or not each.wants(operation):
        return False
    if each.expression is None or operation is Operation.TRUNCATE:
        return True
    row = deciding(change)
    return row is not None and compile(each.expression, relation, catalog(THINGS, OTHERS), {})(row) is True


filters: st.SearchStrategy[Expression | None] = (
    st.none()
    | expressions
    | st.sampled_from(
        [
            "n=eq.1",
            "n=eq.2,t=eq.a",
            "n=in.(1,2),b=is.true",
            "t=eq.a",
            "or(n.eq.1,n.eq.2)",
            "or(and(n.eq.1,t.eq.a),n.eq.2)",
            "n=gt.1",
        ]
    ).map(parse_filter)
)
names = st.sampled_from(
    [("public", "things"), ("*", "*"), ("public", "*"), ("*", "things"), ("app", "things"), ("app", "none")]
)
events: st.SearchStrategy[Event] = st.sampled_from(["INSERT", "UPDATE", "DELETE", "*"])
bindings = st.builds(
    lambda event, name, expression, truncate: Binding(event, name[0], name[1], expression, truncate=truncate),
    events, names, filters, st.booleans(),
)  # fmt: skip
changes = st.builds(
    lambda relation, operation, new, old: Change(
        relation,
        operation,
        new if operation in (Operation.INSERT, Operation.UPDATE) else None,
        old if operation in (Operation.UPDATE, Operation.DELETE) else None,
        0,
    ),
    st.sampled_from([THINGS, OTHERS]), st.sampled_from(Operation), rows, st.none() | rows,
)  # fmt: skip


class Joins(RuleBasedStateMachine):
    """Adds and removes in any order; before and after every step each change finds exactly whom it should."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(catalog(THINGS, OTHERS))
        self.wishes: dict[int, Binding] = {}
        self.holders: dict[int, int] = {}

    @rule(target=held, each=bindings)
    def join(self, each: Binding) -> int:
        number = self.router.add(each, {})
        assert self.wishes.setdefault(number, each.canonical()) == each.canonical()
        self.holders[number] = self.holders.get(number, 0) + 1
        return number

    @rule(number=consumes(held))
    def leave(self, number: int) -> None:
        self.router.remove(number)
        self.holders[number] -= 1
        if not self.holders[number]:
            del self.holders[number], self.wishes[number]

    @rule(change=changes)
    def change(self, change: Change) -> None:
        expected = {number for number, each in self.wishes.items() if wants(each, change)}
        assert matched(self.router, change) == expected

    @invariant()
    def as_many_as_held(self) -> None:
        assert len(self.router) == len(self.wishes)


TestJoins = Joins.TestCase


class Looking(RuleBasedStateMachine):
    """Bindings with viewers, whose sight and who they are changes; each gets what its own eyes may see."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.guards = Guards()
        self.router = Router(catalog(THINGS, OTHERS), self.guards)
        self.wishes: list[Binding] = []

    @rule(target=held, each=bindings, viewer=st.none() | st.sampled_from(VIEWERS))
    def join(self, each: Binding, viewer: Viewer | None) -> int:
        wish = msgspec.structs.replace(each, viewer=viewer).canonical()
        self.wishes.append(wish)
        return self.router.add(wish, {})

    @rule(number=consumes(held))
    def leave(self, number: int) -> None:
        self.wishes.remove(self.router[number].canonical())
        self.router.remove(number)

    @rule(target=held, number=consumes(held), viewer=st.none() | st.sampled_from(VIEWERS))
    def look_as(self, number: int, viewer: Viewer | None) -> int:
        wish = self.router[number].canonical()
        self.wishes.remove(wish)
        self.wishes.append(msgspec.structs.replace(wish, viewer=viewer))
        other = self.router.look_as(number, viewer)
        self.router.remove(number)
        return other

    @rule(viewer=st.sampled_from(VIEWERS), schema=st.sampled_from(["public", "app"]), guard=guards)
    def reguard(self, viewer: Viewer, schema: str, guard: Guard) -> None:
        self.guards.known[viewer, schema] = guard
        self.router.reguard([(schema, "things")])

    @rule(change=changes)
    def change(self, change: Change) -> None:
        found = self.router.match(change)
        expected = [
            each
            for each in set(self.wishes)
            if wants(each, change) and (each.viewer is None or sees(self.guards(each.viewer, change.relation), change))
        ]
        assert {each.canonical() for each in found} == set(expected)
        everyone = self.router.everyone(change.relation, change.operation)
        assert everyone is None or {each.id for each in everyone} == {each.id for each in found}
        view = self.router.view(change.relation)
        for each in found:
            guard = True if each.viewer is None else self.guards(each.viewer, change.relation)
            sight = view.sights.get(each.id)
            assert (sight is not None) == (each.viewer is not None)
            assert (sight is not None and sight.ask is not None) == isinstance(guard, Ask)
            assert (sight is not None and sight.sees is not None) == isinstance(guard, Sifted)
            if isinstance(guard, Ask):
                assert everyone is None
        looked_at = {
            change.relation.positions[name]
            for each in self.wishes
            if each.viewer is not None
            and each.schema in ("*", change.relation.schema)
            and each.table in ("*", "things")
            and isinstance(guard := self.guards(each.viewer, change.relation), Sifted)
            for name in columns_of(guard.expression)
        }
        assert set(view.sifted) == looked_at


TestLooking = Looking.TestCase


@given(st.lists(bindings, max_size=8), st.lists(changes, max_size=4))
def test_the_router_finds_whom_evaluation_finds(wishes: list[Binding], seen: list[Change]) -> None:
    made = router(*wishes)
    for change in seen:
        assert matched(made, change) == {made.add(each, {}) for each in wishes if wants(each, change)}


def test_equal_wishes_share_one_id_and_live_until_the_last_holder_leaves() -> None:
    made = Router(catalog(THINGS))
    first = made.add(binding("n=eq.1,t=eq.a"), {})
    assert made.add(binding("t=eq.a,n=eq.1"), {}) == first
    assert len(made) == 1
    assert made[first].id == first
    assert len(made.match(insert(ONE))) == 1
    made.remove(first)
    assert matched(made, insert(ONE)) == {first}
    made.remove(binding("n=eq.1,t=eq.a"))
    assert matched(made, insert(ONE)) == set()
    assert len(made) == 0
    made.remove(first)
    made.remove(binding("n=eq.1,t=eq.a"))
    with pytest.raises(KeyError):
        made[first]


def test_an_id_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walstream.router.index.first_id", lambda wish: 5)
    made = Router(catalog(THINGS))
    one, two, three = (made.add(binding(text), {}) for text in ("n=eq.1", "n=eq.2", "n=eq.3"))
    assert (one, two, three) == (5, 6, 7)
    made.remove(one)
    assert made.add(binding("n=eq.2"), {}) == 6, "a free id in front does not split a binding"
    assert made.add(binding("n=eq.4"), {}) == 5
    assert matched(made, insert(TWO)) == {6}
    made.remove(binding("n=eq.3"))
    assert len(made) == 2


def test_ids_do_not_depend_on_the_order_of_joins() -> None:
    wishes = [binding("n=eq.1"), binding("n=eq.2"), binding()]
    one, two = Router(catalog(THINGS)), Router(catalog(THINGS))
    assert [one.add(each, {}) for each in wishes] == [two.add(each, {}) for each in reversed(wishes)][::-1]
    assert one.add(wishes[0], {}) == first_id(wishes[0].canonical())


def test_a_delete_is_matched_by_what_the_wal_has_of_the_old_row() -> None:
    made = router(binding("n=eq.1", "DELETE"), binding("t=eq.a", "DELETE"), binding("", "DELETE"))
    by_key, by_text, every = (made.add(binding(text, "DELETE"), {}) for text in ("n=eq.1", "t=eq.a", ""))
    assert matched(made, delete(ONE)) == {by_key, by_text, every}
    assert matched(made, delete((b"1", None, None))) == {by_key, every}
    assert matched(made, delete(None)) == {every}


def test_truncate_reaches_who_asked_for_it_whatever_their_filter() -> None:
    made = Router(catalog(THINGS))
    made.add(binding(), {})
    feed = made.add(Binding("*", "public", "things", parse_filter("n=eq.1"), truncate=True), {})
    assert matched(made, Change(THINGS, Operation.TRUNCATE, None, None, 0)) == {feed}


class Counting:
    """A key that counts how often it is asked for."""

    def __init__(self, key: Callable[[bytes], object]) -> None:
        self.key = key
        self.calls = 0

    def __call__(self, cell: bytes) -> object:
        self.calls += 1
        return self.key(cell)


def test_bindings_that_do_not_match_cost_nothing() -> None:
    made = router(*[binding(f"t=eq.r{number},n=gt.0") for number in range(500)], binding("t=eq.a,n=gt.0"))
    assert len(made.match(insert(ONE))) == 1
    (view,) = made._shapes["public", "things"].values()
    (column,) = view.lanes[Operation.INSERT]._columns.values()
    column.key = counting = Counting(column.key)
    assert len(made.match(insert(ONE))) == 1
    assert counting.calls == 1
    assert not view.lanes[Operation.INSERT]._scanned


def test_of_several_equalities_the_one_that_few_share_finds_the_row() -> None:
    made = router(insert_filter := binding("b=eq.true,n=eq.0"))
    made.match(insert(ONE))
    for number in range(1, 50):
        made.add(binding(f"b=eq.true,n=eq.{number}"), {})
    (view,) = made._shapes["public", "things"].values()
    columns = view.lanes[Operation.INSERT]._columns
    assert max(len(bucket) for column in columns.values() for bucket in column.buckets.values()) <= 1
    assert matched(made, insert(ONE)) == {made.add(binding("b=eq.true,n=eq.1"), {})}
    assert insert_filter.expression is not None


def test_a_column_that_is_gone_is_a_fault_until_it_is_back() -> None:
    made = router(binding("t=eq.a"), binding("n=eq.1"))
    by_text, by_number = (made.add(binding(text), {}) for text in ("t=eq.a", "n=eq.1"))
    assert matched(made, insert(ONE)) == {by_text, by_number}
    assert made.faults == {}
    shorter = Relation("public", "things", COLUMNS[:1], ("n",))
    assert matched(made, insert((b"1",), shorter)) == {by_number}
    assert made.drain_faults() == {(by_text, "public", "things"): "invalid column for filter t"}
    assert made.drain_faults() == {}
    again = Relation("public", "things", COLUMNS, ("n",))
    assert matched(made, insert(ONE, again)) == {by_text, by_number}


def test_a_binding_that_leaves_takes_its_faults_along() -> None:
    made = router(binding("gone=eq.a"))
    made.match(insert(ONE))
    assert len(made.faults) == 1
    made.remove(binding("gone=eq.a"))
    assert made.faults == {}


def test_a_column_that_changed_its_type_is_compared_anew() -> None:
    made = router(binding("n=eq.1"))
    number = made.add(binding("n=eq.1"), {})
    texts = Relation("public", "things", (Column("n", 25, "text"), *COLUMNS[1:]))
    assert matched(made, insert(ONE)) == {number}
    assert matched(made, insert((b'"1"', b"null", b"null"), texts)) == {number}
    assert matched(made, insert((b'"01"', b"null", b"null"), texts)) == set()


def test_literals_that_postgresql_read_differently_make_different_bindings() -> None:
    dated = Relation("public", "things", (Column("at", 1082, "date"),))
    made = Router(Catalog())
    wish = binding("at=gt.yesterday")
    first = made.add(wish, {(1082, "yesterday"): b'"2024-01-01"', (1082, "other"): b'"2024-01-01"'})
    second = made.add(wish, {(1082, "yesterday"): b'"2024-01-02"'})
    assert second == next_id(first)
    assert made.add(wish, {(1082, "yesterday"): b'"2024-01-01"'}) == first
    assert matched(made, insert((b'"2024-01-02"',), dated)) == {first}
    assert matched(made, insert((b'"2024-01-03"',), dated)) == {first, second}
    made.remove(first)
    made.remove(first)
    assert matched(made, insert((b'"2024-01-03"',), dated)) == {second}


def test_literals_that_come_with_a_later_join_mend_a_fault() -> None:
    dated = Relation("public", "things", (Column("at", 1082, "date"),))
    made = Router(Catalog())
    wish = binding("at=gt.yesterday")
    number = made.add(wish, {})
    assert matched(made, insert((b'"2024-01-03"',), dated)) == set()
    assert (number, "public", "things") in made.faults
    assert made.add(wish, {(1082, "yesterday"): b'"2024-01-01"'}) == number
    assert matched(made, insert((b'"2024-01-03"',), dated)) == {number}
    assert made.faults == {}


def test_a_type_that_nobody_loaded_is_a_fault_not_an_error() -> None:
    strange = Relation("public", "things", (Column("m", 90001, "mood"),))
    facts = Catalog()
    made = Router(facts)
    number = made.add(binding("m=eq.ok"), {(90001, "ok"): b'"ok"'})
    assert matched(made, insert((b'"ok"',), strange)) == set()
    assert "90001" in made.drain_faults()[number, "public", "things"]
    facts.load(types={90001: TypeInfo(90001, "mood", kind="e", labels=("ok",))})
    again = Relation("public", "things", (Column("m", 90001, "mood"), Column("n", 23, "int4")))
    assert matched(made, insert((b'"ok"', b"1"), again)) == {number}


def test_partitions_of_one_shape_share_their_arrangement_and_old_definitions_go() -> None:
    made = router(binding("n=eq.1"))
    leaves = [
        Relation("public", "things", COLUMNS, ("n",), leaf=("public", f"things_{number}")) for number in range(20)
    ]
    for leaf in leaves:
        assert len(made.match(insert(ONE, leaf))) == 1
    assert len(made._shapes["public", "things"]) == 1
    for number in range(20):
        wider = Relation("public", "things", (*COLUMNS, Column(f"c{number}", 23, "int4")), ("n",))
        assert len(made.match(insert((*ONE, b"1"), wider))) == 1
    assert len(made._shapes["public", "things"]) == 1 + STATES_PER_TABLE
    assert len(made._views) == 20 + STATES_PER_TABLE
    assert len(made.match(insert(ONE, leaves[0]))) == 1


def test_a_list_without_values_matches_nothing_and_leaves_without_a_trace() -> None:
    made = router(binding("n=in.()"), binding("n=in.(null)"))
    assert made.match(insert(ONE)) in ((), [])
    for text in ("n=in.()", "n=in.(null)"):
        made.remove(binding(text))
    (view,) = made._shapes["public", "things"].values()
    assert not view.lanes[Operation.INSERT]._columns
