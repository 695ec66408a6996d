"""Whether an item can be had, and the words in which it is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.predicate.rows import COLUMNS, TABLE, catalog
from walstream.capture.plan import Plan, subscription_row
from walstream.channel.join import ChangeItem, parse_join
from walstream.channel.topic import parse_topic
from walstream.model import CatalogMiss, Column, Relation
from walstream.shell.clients import join_check
from walstream.shell.clients.join_check import Facts, ItemProblem, Wish
from walstream.shell.database.access import RoleFacts, TableRight

OTHER = Relation("public", "others", (Column("n", 23, "int4"), Column("x", 25, "text")), ("n",))
CATALOG = catalog(TABLE, OTHER)
USER = RoleFacts(bypasses_rls=False, superuser=False, member=True)
GRANTED = {("anon", "public", name): TableRight(True, False) for name in ("things", "others")}
TABLES = {("public", each.name): each for each in (TABLE, OTHER)}
UNABLE = "Unable to subscribe to changes with given parameters. "
EXCEPTION = UNABLE + "An exception happened so please check your connect parameters: "


def facts(**changes: Any) -> Facts:
    return Facts({"anon": USER}, GRANTED, TABLES, {})._replace(**changes)


def wish(**members: Any) -> Wish:
    values: dict[str, Any] = {"schema": "public", "table": "things", **members}
    (found,) = join_check.read([ChangeItem(b"{}", **values)])
    return found


def refused(given_wish: Wish, known: Facts) -> str:
    with pytest.raises(ItemProblem) as problem:
        join_check.binding(given_wish, "anon", known, CATALOG, truncate=False)
    return problem.value.message


def test_what_is_allowed_becomes_a_binding() -> None:
    found = join_check.binding(
        wish(event="UPDATE", filter="n=eq.1", select=("t",)), "anon", facts(), CATALOG, truncate=True
    )
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
        ({}, {"rights": {("anon", "public", "things"): TableRight(False, True)}}, "row-level security is enabled"),
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
    known = facts(rights={("anon", "public", "others"): TableRight(True, False)})
    found = join_check.binding(wish(table="*", filter="x=eq.1"), "anon", known, CATALOG, truncate=False)
    assert (found.schema, found.table) == ("public", "*")


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
            found = join_check.binding(each, role, known, CATALOG, truncate=False)
            assert role == "anon"
            assert (found.schema, found.table) == (each.schema, each.table)
            for column in found.select or ():
                assert column in {known.name for known in (*COLUMNS, *OTHER.columns)}
