"""The catalog's facts: what is asked for again, and what stays known of a table that is gone."""

from __future__ import annotations

from walstream.model import FORMER_MAX, Catalog, RelationInfo

NAME = ("public", "t")
INFO = RelationInfo(1, *NAME, primary_key=("id",))


def test_what_is_forgotten_has_to_be_asked_for_again() -> None:
    catalog = Catalog()
    catalog.load({NAME: INFO})
    catalog.forget(*NAME)
    assert NAME not in catalog.relations
    newer = RelationInfo(1, *NAME)
    catalog.load({NAME: newer})
    assert catalog.relations[NAME] is newer


def test_a_table_that_is_gone_is_known_as_it_was() -> None:
    catalog = Catalog()
    catalog.load({NAME: INFO})
    catalog.forget_relations()
    catalog.load({NAME: None})
    assert catalog.relations[NAME] is INFO


def test_a_table_that_never_was_is_known_to_be_absent() -> None:
    catalog = Catalog()
    catalog.load({NAME: None})
    assert catalog.relations == {NAME: None}


def test_not_everything_that_ever_was_is_remembered() -> None:
    catalog = Catalog()
    for number in range(FORMER_MAX + 1):
        catalog.load({("public", str(number)): INFO})
        catalog.forget("public", str(number))
    catalog.load({("public", "0"): None, ("public", "1"): None})
    assert catalog.relations == {("public", "0"): None, ("public", "1"): INFO}


def test_a_table_that_goes_while_it_is_known_stays_known() -> None:
    catalog = Catalog()
    catalog.load({NAME: INFO})
    catalog.load({NAME: None})
    assert catalog.relations[NAME] is INFO
