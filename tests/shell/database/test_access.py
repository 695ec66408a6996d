"""Who may see which table's changes: the newest answer, and nothing that was not answered."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from walstream.model import Catalog, Relation
from walstream.shell.database.access import ABSENT_MAX, Rights, TableAccess, TableRight

YES, NO = TableRight(True), TableRight(False)
THINGS = Relation("public", "things", ())
KEY = ("public", "things")


def test_what_was_not_asked_is_not_allowed() -> None:
    access = TableAccess(Catalog())
    access.enter("anon")
    assert not access.is_open("anon", THINGS)
    assert not access.knows("anon", *KEY)


def test_an_answer_counts_for_its_pair_alone() -> None:
    access = TableAccess(Catalog())
    access.enter("anon")
    access.enter("authenticated")
    access.update({("anon", *KEY): YES}, ["anon"], [KEY])
    assert access.is_open("anon", THINGS)
    assert access.knows("anon", *KEY)
    assert not access.is_open("authenticated", THINGS)
    assert not access.knows("authenticated", *KEY)
    assert not access.is_open("anon", Relation("public", "others", ()))
    assert not access.is_open("anon", Relation("other", "things", ()))


def test_revoked_and_dropped_tables_are_forbidden_by_the_next_answer() -> None:
    for answer in ({("anon", *KEY): NO}, {}):
        access = TableAccess(Catalog())
        access.enter("anon")
        access.update({("anon", *KEY): YES}, ["anon"], [KEY])
        access.update(answer, ["anon"], [KEY])
        assert not access.is_open("anon", THINGS)


def test_names_that_clients_make_up_are_remembered_in_bounds() -> None:
    access = TableAccess(Catalog())
    access.enter("anon")
    access.update({("anon", *KEY): YES}, ["anon"], [KEY])
    access.update({}, ["gone"], [KEY])  # a role that does not exist tells nothing of the table
    for number in range(3 * ABSENT_MAX):
        asked = ("public", f"made_up_{number}")
        access.update({}, ["anon"], [asked])
        assert asked in access.tables, "what was just asked is known, or its reader would ask for ever"
    assert len(access.tables) == ABSENT_MAX + 1
    assert access.rights == {("anon", *KEY): YES}
    assert KEY in access.tables


def test_nothing_of_a_role_stays_when_its_last_channel_has_gone() -> None:
    access = TableAccess(Catalog())
    access.enter("anon")
    access.enter("anon")
    access.update({("anon", *KEY): YES}, ["anon"], [KEY])
    access.left("anon")
    assert access.is_open("anon", THINGS)
    access.left("anon")
    assert not access.is_open("anon", THINGS)
    assert not access.knows("anon", *KEY)
    assert (access.roles, access.rights) == ({}, {})
    access.enter("anon")
    assert not access.is_open("anon", THINGS)


ROLES = ("a", "b", "c")
TABLES = (("s", "t"), ("s", "u"), ("v", "t"))


class Asking(RuleBasedStateMachine):
    """Any order of answers, joins and leaves, against the last answer for each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.access = TableAccess(Catalog())
        self.joined: dict[str, int] = {}
        self.answers: dict[tuple[str, str, str], bool] = {}

    @rule(roles=st.sets(st.sampled_from(ROLES)), tables=st.sets(st.sampled_from(TABLES)), data=st.data())
    def answer(self, roles: set[str], tables: set[tuple[str, str]], data: st.DataObject) -> None:
        rights: Rights = {}
        for role in roles:
            for schema, table in tables:
                allowed = data.draw(st.sampled_from([True, False, None]))
                self.answers[role, schema, table] = bool(allowed)
                if allowed is not None:
                    rights[role, schema, table] = TableRight(allowed)
        self.access.update(rights, roles, tables)

    @rule(role=st.sampled_from(ROLES))
    def enter(self, role: str) -> None:
        self.joined[role] = self.joined.get(role, 0) + 1
        self.access.enter(role)

    @rule(role=st.sampled_from(ROLES))
    def left(self, role: str) -> None:
        if not self.joined.get(role):
            return
        self.joined[role] -= 1
        self.access.left(role)
        if not self.joined[role]:
            self.answers = {key: allowed for key, allowed in self.answers.items() if key[0] != role}

    @invariant()
    def allowed_is_what_was_answered_last(self) -> None:
        for role in ROLES:
            for schema, table in TABLES:
                allowed = self.access.is_open(role, Relation(schema, table, ()))
                assert allowed is self.answers.get((role, schema, table), False)
                # A refresh of everything that is known reaches whatever is allowed.
                assert not allowed or (schema, table) in self.access.tables
                assert not self.access.knows(role, schema, table) or self.joined.get(role)


TestAsking = Asking.TestCase
