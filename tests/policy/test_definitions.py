"""Functions that give claims are known by their bodies, however these are laid out, and by nothing less."""

from __future__ import annotations

import pytest

from walstream.policy.definitions import BODIES, term_of, words
from walstream.policy.terms import TEXT, UUID

UID = "select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid"


@pytest.mark.parametrize(
    "body",
    [
        UID,
        "\n  SELECT\n  NULLIF( Current_Setting('request.jwt.claim.sub',TRUE),'' ) :: UUID ;;\n",
        "-- who\n" + UID.replace(" nullif", "/* by * the token */nullif") + "; -- done",
    ],
)
def test_layout_does_not_count(body: str) -> None:
    assert term_of(body, UUID) == BODIES[UID]


@pytest.mark.parametrize(
    "body",
    [
        "",
        UID.replace("sub", "SUB"),
        UID.replace("''", "' '"),
        UID.replace("true", "false"),
        UID + " limit 1",
        UID.replace("nullif", '"nullif"'),
        UID.replace("current_setting", "public.current_setting"),
        UID + "; select 1",
        UID.replace(" ", "\u00a0"),
    ],
)
def test_anything_else_does(body: str) -> None:
    assert term_of(body, UUID) is None


def test_a_function_of_another_type_is_another_one() -> None:
    assert term_of(UID, TEXT) is None


def test_no_two_bodies_that_are_written_alike_mean_different_things() -> None:
    assert len({words(body) for body in BODIES}) == len(set(BODIES))
