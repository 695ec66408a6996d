"""The slot is looked at twice where it is at risk, for how long what is left lasts takes two looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast
from unittest import mock

import pytest

from tests.shell.database_support import FakeConnection
from walstream.config import Config
from walstream.history.budget import RATE_SECONDS_MIN
from walstream.lsn import Lsn
from walstream.shell.commands import checkup, preflight
from walstream.shell.commands.preflight import Server
from walstream.shell.database import slots
from walstream.shell.database.open_transactions import HELD_BYTES, MAKING_SECONDS, OPEN_SECONDS
from walstream.shell.database.reports import Finding
from walstream.shell.database.slots import Slot

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

MIB = 1 << 20
LIMIT = 100 * MIB


@pytest.fixture
def pauses() -> Iterator[list[float]]:
    """Seconds for which was waited: the clock goes on by them alone."""
    waited: list[float] = []
    with (
        mock.patch.object(time, "sleep", waited.append),
        mock.patch.object(time, "monotonic", side_effect=lambda: sum(waited)),
    ):
        yield waited


def judged(*kept: int) -> Finding:
    """By a server that keeps that much back, look by look; nothing is there afterwards."""
    looks = iter([*kept, None])

    def find(connection: object, name: str) -> Slot | None:
        retained = next(looks)
        if retained is None:
            return None
        return Slot(
            name, "wal2json", "d", True, 7, Lsn(1), Lsn(2), 10, retained, "reserved", LIMIT - retained, False
        )  # fmt: skip

    server = Server(database="d", max_slot_wal_bytes=LIMIT)
    with mock.patch.object(slots, "find", find):
        slot, budget = checkup._slot(cast("PgConnection", None), Config(), server.max_slot_wal_bytes)
    return preflight.judge_slot(server, "auto", "walstream", slot, budget)


def test_a_slot_at_risk_says_for_how_long_it_lasts(pauses: list[float]) -> None:
    found = judged(50 * MIB, 52 * MIB)
    assert found.code == "slot_at_risk"
    assert "52.0 MB of 100.0 MB kept back, 48.0 MB left, for about 96 s at the present rate" in found.cause
    assert pauses == [RATE_SECONDS_MIN]


def test_nobody_waits_for_a_slot_that_is_not_at_risk_or_has_nothing_left(pauses: list[float]) -> None:
    assert judged(1).code == "slot"
    assert judged(LIMIT).code == "slot_at_risk"
    assert pauses == []


@pytest.mark.parametrize(
    ("confirmed", "retained", "asked"),
    [(Lsn(2), HELD_BYTES + 10, []), (Lsn(2), HELD_BYTES + 11, [(OPEN_SECONDS,)]), (None, 0, [(MAKING_SECONDS,)])],
)
def test_who_keeps_wal_back_is_asked_where_somebody_may(
    confirmed: Lsn | None, retained: int, asked: list[tuple[float]]
) -> None:
    connection = FakeConnection(usual=(None, 4712, "app", "shop", 61.0))
    slot = Slot("s", "wal2json", "d", True, 7, Lsn(1), confirmed, 10, retained, "reserved", None, False)
    keeper = checkup._keeper(connection.as_connection(), slot)
    assert [parameters for _, parameters in connection.executed] == asked
    assert (keeper is not None) is bool(asked)


def test_a_slot_that_goes_meanwhile_is_not_there(pauses: list[float]) -> None:
    assert "not there yet" in judged(50 * MIB).cause
    assert pauses == [RATE_SECONDS_MIN]
