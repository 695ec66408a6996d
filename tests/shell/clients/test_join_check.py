"""Whether an item can be had, and the words in which it is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.predicate.rows import COLUMNS, TABLE, catalog
from walstream.auth.tokens import Claims
from walstream.capture.plan import Plan, subscription_row
from walstream.channel.join import ChangeItem, parse_join
from walstream.channel.topic import parse_topic
from walstream.model import CatalogMiss, Column, Relation
from walstream.policy import Policy, Protection, Viewer
from walstream.router import Binding
from walstream.shell.clients import join_check
from walstream.shell.clients.join_check import Facts, ItemProblem, Wish
from walstream.shell.database.access import RoleFacts, TableRight

OTHER = Relation("public", "others", (Column("n", 23, "int4"), Column("x", 25, "text")), ("n",))
CATALOG = catalog(TABLE, OTHER)
USER = RoleFacts(bypasses_rls=False, superuser=False, member=True)
GRANTED = {("anon", "public", name): TableRight(True) for name in ("things", "others")}
TABLES = {("public", each.name): each for each in (TABLE, OTHER)}
UNABLE = "Unable to subscribe to changes with given parameters. "
RESTRICTIVE = Policy("r", permissive=False, condition="true", columns=())
SHUT = Protection("public", "things", (RESTRICTIVE,))
GUARDED = Protection("public", "things", (RESTRICTIVE, Policy("p", True, "true", ())))
EXCEPTION = UNABLE + "An exception happened so please check your connect parameters: "


def right(**members: Any) -> dict[tuple[str, str, str], TableRight]:
    return {("anon", "public", "things"): TableRight(True, **members)}


def bound(given: Wish, known: Facts, *, role: str = "anon", truncate: bool = False) -> Binding:
    (found,) = join_check.bindings([given], Claims(role, json='{"sub":"1"}'), known, CATALOG, truncate=truncate)
    return found


def facts(**changes: Any) -> Facts:
    return Facts({"anon": USER}, GRANTED, TABLES, {})._replace(**changes)


def wish(**members: Any) -> Wish:
    values: dict[str, Any] = {"schema": "public", "table": "things", **members}
    (found,) = join_check.read([ChangeItem(b"{}", **values)])
    return found


def refused(given_wish: Wish, known: Facts) -> str:
    with pytest.raises(ItemProblem) as problem:
        bound(given_wish, known)
    return problem.value.message


def test_what_is_allowed_becomes_a_binding() -> None:
    found = bound(wish(event="UPDATE", filter="n=eq.1", select=("t",)), facts(), truncate=True)
    assert (found.event, found.schema, found.table, found.select) == ("UPDATE", "public", "things", ("t",))
    assert found.truncate
    assert found.expression is not None


@pytest.mark.parametrize(
    ("members", "changes", "words"),
    [
        ({}, {"roles": {}}, 'role "anon" does not exist'),
        ({}, {"roles": {"anon": USER._replace(superuser=True)}}, "role anon is not open to clients"),
        ({}, {"roles": {"anon": USER._replace(member=False)}}, "role anon is not open to clients"),
        ({}, {"rights": {}}, "permission denied for table public.things as anon"),
        ({}, {"rights": right(protection=SHUT)}, "no policy lets role anon read it"),
        ({"filter": "t=eq.a"}, {"rights": right(columns=frozenset({"n"}))}, "invalid column for filter t"),
        ({"select": ("n", "t")}, {"rights": right(columns=frozenset({"n"}))}, "invalid column for select t"),
        ({"filter": "nope=eq.1"}, {}, "invalid column for filter nope"),
        ({"select": ("nope",)}, {}, "invalid column for select nope"),
        ({"table": "*", "filter": "t=eq.1"}, {}, "invalid column for filter t"),
    ],
)
def test_an_exception_is_told_with_its_item(members: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    message = refused(wish(**members), facts(**changes))
    assert message.startswith(EXCEPTION + "[event: *, schema: public, table: ")
    assert words in message


@pytest.mark.parametrize(
    ("members", "changes"),
    [({"table": "ghosts"}, {}), ({"schema": "nowhere"}, {}), ({"table": "*"}, {"rights": {}}), ({}, {"tables": {}})],
)
def test_what_is_not_there_or_not_captured_is_not_enabled(members: dict[str, Any], changes: dict[str, Any]) -> None:
    message = refused(wish(**members), facts(**changes))
    assert message.startswith(UNABLE + "Please check Realtime is enabled for the given connect parameters: [event: *")


def test_the_words_are_supabases() -> None:
    assert refused(wish(event="INSERT", table="ghosts"), facts()) == (
        UNABLE + "Please check Realtime is enabled for the given connect parameters:"
        " [event: INSERT, schema: public, table: ghosts, filters: [], select: nil]"
    )
    assert refused(wish(filter='nope=eq.1,t=in.(a,b),b=is.true,t=not.like."x"', select=("n", "t")), facts()) == (
        EXCEPTION + '[event: *, schema: public, table: things, filters: [{"nope", "eq", "1"}, {"t", "in", "(a,b)"},'
        ' {"b", "is", "true"}, {"t", "like", "x"}], select: ["n", "t"]].'
        " Exception: ERROR P0001 (raise_exception) invalid column for filter nope"
    )


def test_a_wildcard_needs_one_table_that_is_allowed_and_is_held_to_no_other() -> None:
    known = facts(rights={("anon", "public", "others"): TableRight(True)})
    found = bound(wish(table="*", filter="x=eq.1"), known)
    assert (found.schema, found.table) == ("public", "*")


def test_row_level_security_on_one_table_gives_all_items_of_a_join_a_viewer() -> None:
    known = facts(rights={**GRANTED, **right(protection=GUARDED)})
    items = [wish(table="others"), wish(table="things"), wish(table="*")]
    claims = Claims("anon", json='{"sub":"1"}')
    found = join_check.bindings(items, claims, known, CATALOG, truncate=False)
    assert {binding.viewer for binding in found} == {Viewer("anon", '{"sub":"1"}')}
    assert [binding.viewer for binding in join_check.bindings(items[:1], claims, known, CATALOG, truncate=False)] == [
        None
    ]
    # A table that shows nobody anything is no part of a wildcard.
    known = facts(rights={**GRANTED, **right(protection=SHUT)})
    assert bound(wish(table="*"), known).viewer is None


def test_columns_that_are_not_captured_are_not_there() -> None:
    plan = Plan([subscription_row("1", "public.things", ["*"], None, ["t"])], own_schema="realtime")
    seen = join_check.captured(TABLE, plan)
    assert seen is not None
    assert [column.name for column in seen.columns] == ["n", "t"], "its key is always there"
    known = facts(tables={("public", "things"): seen})
    assert "invalid column for filter b" in refused(wish(filter="b=is.true"), known)
    assert "invalid column for select b" in refused(wish(select=("b",)), known)
    assert join_check.captured(OTHER, plan) is None


members = st.dictionaries(
    st.sampled_from(["event", "schema", "table", "filter", "select"]),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=3),
        st.sampled_from(["public", "things", "others", "*", "n=eq.1", "n=gt.1,t=like.a%", "t=match.(", "or(n.eq.1)"]),
    ),
)  # fmt: skip


@given(st.lists(members, max_size=4), st.sampled_from(["anon", "nobody", ""]))
def test_any_item_is_had_or_refused(items: list[dict[str, Any]], role: str) -> None:
    import msgspec

    topic = parse_topic("realtime:t")
    assert topic is not None
    config = parse_join(topic, msgspec.json.encode({"config": {"postgres_changes": items}}))
    with contextlib.suppress(ItemProblem, CatalogMiss):
        for each in join_check.read(config.items):
            needed = join_check.needed([each], TABLES, CATALOG)
            known = facts(literals=dict.fromkeys(needed, b'"x"'))
            found = bound(each, known, role=role)
            assert role == "anon"
            assert (found.schema, found.table) == (each.schema, each.table)
            for column in found.select or ():
                assert column in {known.name for known in (*COLUMNS, *OTHER.columns)}
