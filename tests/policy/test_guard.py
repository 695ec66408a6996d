"""One viewer's guard: what is understood decides where it can, and PostgreSQL is asked where it cannot."""

from __future__ import annotations

import pytest

from walstream.model import Catalog, CatalogMiss, Column, Relation, RelationInfo, TypeInfo
from walstream.policy import Ask, Policy, Protection, Sifted, Viewer, guard
from walstream.policy import formula as f
from walstream.policy import terms as t
from walstream.predicate.expression import And, Compare

RELATION = Relation("public", "docs", (Column("team", t.TEXT, "text"), Column("price", 1700, "numeric")))
VIEWER = Viewer("anon", '{"team": "a", "role": "member"}')
TEAM = f.Column("team", t.TEXT, t.TEXT)


def claim(name: str) -> t.Term:
    return t.Member(t.Read(t.Setting("request.jwt.claims"), t.JSONB), name, as_text=True)


OWN = f.ColumnCompare(TEAM, "eq", claim("team"))
NOT_B = f.ColumnCompare(TEAM, "neq", t.Fixed(t.TEXT, "b"))
MEMBER = f.TermCompare(claim("role"), "eq", t.Fixed(t.TEXT, "member"))
STRANGER = f.TermCompare(claim("role"), "eq", t.Fixed(t.TEXT, "stranger"))
FAILS = f.TermIsNull(t.Read(claim("team"), t.UUID))


def catalog() -> Catalog:
    made = Catalog()
    made.load(
        types={
            t.TEXT: TypeInfo(t.TEXT, "text"),
            1700: TypeInfo(1700, "numeric"),
            1231: TypeInfo(1231, "_numeric", category="A", element=1700),
        }
    )
    return made


CATALOG = catalog()


def policy(formula: f.Formula | None, permissive: bool = True, name: str = "p") -> Policy:
    return Policy(name, permissive, f"sql of {name}", (("team", "text"),), formula)


def protected(*policies: Policy) -> Protection:
    return Protection("public", "docs", policies)


def guarded(*policies: Policy) -> object:
    return guard(protected(*policies), VIEWER, RELATION, CATALOG)


def hold(formula: f.Formula | None) -> Policy:
    return policy(formula, permissive=False)


def test_without_row_level_security_all_is_seen_and_without_permissive_policies_nothing() -> None:
    assert guard(None, VIEWER, RELATION, CATALOG) is True
    assert guarded() is False
    assert guarded(hold(f.Constant(True))) is False


@pytest.mark.parametrize(
    ("policies", "answer"),
    [
        ((policy(MEMBER),), True),
        ((policy(STRANGER),), False),
        ((policy(f.Constant(None)),), False),
        ((policy(STRANGER), policy(MEMBER)), True),
        ((policy(MEMBER), hold(STRANGER)), False),
        ((policy(MEMBER), hold(f.Constant(None))), False),
        ((policy(None), policy(MEMBER)), True),
        ((policy(None), hold(STRANGER)), False),
        ((policy(STRANGER), hold(None)), False),
        ((policy(OWN), hold(STRANGER), hold(None)), False),
    ],
)
def test_decided(policies: tuple[Policy, ...], answer: bool) -> None:
    assert guarded(*policies) is answer


@pytest.mark.parametrize(
    "policies",
    [
        (policy(None),),
        (policy(None), policy(OWN)),
        (policy(None), policy(STRANGER)),
        (policy(MEMBER), hold(None)),
        (policy(OWN), hold(None)),
        (policy(FAILS),),
        (policy(MEMBER), policy(FAILS)),
        (policy(MEMBER), hold(FAILS)),
    ],
)
def test_asked(policies: tuple[Policy, ...]) -> None:
    assert isinstance(guarded(*policies), Ask)


def test_sifted() -> None:
    assert guarded(policy(OWN)) == Sifted(Compare("team", "eq", "a"), {})
    assert guarded(policy(None), policy(MEMBER), hold(OWN)) == Sifted(Compare("team", "eq", "a"), {})
    both = guarded(policy(OWN), hold(NOT_B))
    assert both == Sifted(And((Compare("team", "eq", "a"), Compare("team", "neq", "b"))), {})
    assert guarded(policy(OWN), hold(NOT_B)) == guarded(policy(NOT_B), hold(OWN)), "one form for one meaning"


def test_the_question_has_all_policies_and_is_one_object_for_all_viewers() -> None:
    protection = protected(
        hold(None), policy(None, name="q"), Policy("r", True, "r", (("price", "numeric"),)),
        Policy("s", False, "s", (), None, "system_column"),
    )  # fmt: skip
    ask = guard(protection, VIEWER, RELATION, CATALOG)
    assert isinstance(ask, Ask)
    assert ask.condition == "(sql of p) AND (s) AND ((r) OR (sql of q))"
    assert ask.columns == (("price", "numeric"), ("team", "text"))
    assert ask.problem == "system_column"
    assert guard(protection, Viewer("anon", "{}"), RELATION, CATALOG) is ask


def test_text_that_only_postgresql_can_compare_is_asked_about() -> None:
    fuzzy = catalog()
    fuzzy.load({("public", "docs"): RelationInfo(1, "public", "docs", fuzzy_text=frozenset({"team"}))})
    assert isinstance(guard(protected(policy(OWN)), VIEWER, RELATION, fuzzy), Ask)
    ordered = f.ColumnCompare(TEAM, "lt", t.Fixed(t.TEXT, "b"))
    assert isinstance(guarded(policy(ordered)), Ask)


def test_types_that_are_not_known_yet_are_asked_for() -> None:
    enum = Relation("public", "docs", (Column("team", 70000, "mood"),))
    compared = f.ColumnCompare(f.Column("team", 70000, f.ENUM), "eq", t.Fixed(70000, "ok"))
    with pytest.raises(CatalogMiss):
        guard(protected(policy(compared)), VIEWER, enum, CATALOG)
    known = catalog()
    known.load(types={70000: TypeInfo(70000, "mood", "e", labels=("ok",))})
    found = guard(protected(policy(compared)), VIEWER, enum, known)
    assert found == Sifted(Compare("team", "eq", "ok"), {(70000, "ok"): b'"ok"'})
