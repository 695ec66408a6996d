"""What was read before, beside what the slot offers now; and what becomes of a slot, told once."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs

from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.history.lineage import Lineage
from walstream.history.plan_log import Anew
from walstream.lsn import Lsn
from walstream.shell.database import parked, publications, slots
from walstream.shell.database.publications import Synced
from walstream.shell.health import Health
from walstream.shell.wal import slot_keeper
from walstream.shell.wal.slot_keeper import Read, Reading, SlotKeeper, Stream
from walstream.shell.wal.slot_life import TURNS, SlotLife
from walstream.telemetry.metrics import SLOT_TURNS, Metrics


def slot(**changes: Any) -> slots.Slot:
    values = {
        "name": "s", "plugin": "wal2json", "database": "mine", "active": False, "active_pid": None, "restart_lsn": None,
        "confirmed_lsn": None, "lag_bytes": 0, "retained_bytes": 0, "wal_status": "reserved", "safe_bytes": None,
        "temporary": False,
    }  # fmt: skip
    return slots.Slot(**{**values, **changes})


class Prepared:
    """What the reader did to the slot."""

    def __init__(self, found: slots.Slot | None, decoder: str = "auto") -> None:
        self.done: list[str] = []
        self.left_out = Lsn(1 << 60)
        self.published = publications.Synced((), ())
        self.found = found
        self.keeper = SlotKeeper(Reading("", "s", decoder))

    def ask(self, row: tuple[Any, ...] = ("UTF8", "mine", 60.0, 1.0, "4711", 1)) -> tuple[Stream, float]:
        connection = mock.MagicMock()
        with (
            mock.patch.object(slot_keeper, "only", return_value=row),
            mock.patch.object(slots, "find", self._find),
            mock.patch.object(slots, "drop", self._drop),
            mock.patch.object(slots, "create", self._create),
            mock.patch.object(publications, "sync_publications", self._publish),
            mock.patch.object(parked, "is_left_out", lambda *asked: asked[1:] == ("realtime", "s", self.left_out)),
            mock.patch.object(publications, "anew", lambda _, tables: Anew(frozenset(tables), 900)),
        ):
            return self.keeper.prepare(connection)

    def _drop(self, *_: object) -> None:
        self.done.append("drop")

    def _find(self, *_: object) -> slots.Slot | None:
        return self.found

    def _publish(self, *_: object) -> publications.Synced:
        self.done.append("publish")
        return self.published

    def _create(self, connection: object, name: str, decoder: str) -> tuple[str, Lsn]:
        self.done.append("create")
        return "pgoutput" if decoder == "pgoutput" else "wal2json", Lsn(1)


@pytest.mark.parametrize(
    ("found", "decoder", "done"),
    [
        (None, "auto", ["publish", "create"]),
        (None, "wal2json", ["create"]),
        (None, "pgoutput", ["publish", "create"]),
        (slot(), "auto", []),
        (slot(plugin="pgoutput"), "auto", ["publish"]),
        (slot(wal_status="lost"), "wal2json", ["drop", "create"]),
        (slot(wal_status=None), "auto", []),
    ],
)
def test_a_slot_is_found_or_made(found: slots.Slot | None, decoder: str, done: list[str]) -> None:
    prepared = Prepared(found, decoder)
    stream, timeout = prepared.ask()
    assert prepared.done == done
    assert (stream.is_new_slot, timeout) == ("create" in done, 60.0)


@pytest.mark.parametrize(
    ("found", "decoder", "reason"),
    [
        (slot(database="theirs"), "auto", "slot_database"),
        (slot(database="theirs", wal_status="lost"), "auto", "slot_database"),
        (slot(plugin="test_decoding", wal_status="lost"), "auto", "slot_plugin"),
        (slot(plugin="pgoutput"), "wal2json", "slot_plugin"),
        (slot(active=True, active_pid=7), "auto", "slot_active"),
    ],
)
def test_a_slot_that_is_not_ours_is_left_alone(found: slots.Slot, decoder: str, reason: str) -> None:
    prepared = Prepared(found, decoder)
    with pytest.raises(DatabaseRefused) as refused:
        prepared.ask()
    assert refused.value.reason == reason
    assert refused.value.repair
    assert prepared.done == []


def test_a_database_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WalstreamError, match="SQL_ASCII"):
        Prepared(None).ask(("SQL_ASCII", "mine", 60.0, 1.0, "4711", 1))


# -- continuity

READ = Read("abcd", 100, 80)
PROMOTED = Lineage("ef01", {"abcd": Lsn(80)})


def stream(**changes: Any) -> Stream:
    values: dict[str, Any] = {"confirmed": Lsn(50), "wal_end": Lsn(200), **changes}
    return Stream("wal2json", values.pop("lineage", Lineage("abcd")), 1.0, values.pop("is_new_slot", False), **values)


@pytest.mark.parametrize(
    ("read", "offered", "gap", "turn"),
    [
        (READ, stream(), "", ""),
        (READ, stream(confirmed=Lsn(100), wal_end=Lsn(100)), "", ""),
        (READ, stream(confirmed=Lsn(101)), "slot_lost", "moved"),
        (READ, stream(wal_end=Lsn(99)), "other_cluster", "fell_back"),
        (READ, stream(lineage=Lineage("ef01")), "other_cluster", "other_cluster"),
        (READ, stream(lineage=Lineage("ef01"), is_new_slot=True), "other_cluster", "other_cluster"),
        (READ, stream(lineage=PROMOTED, wal_end=Lsn(90)), "", "promoted"),
        (READ, stream(lineage=PROMOTED, wal_end=Lsn(90), confirmed=Lsn(81)), "slot_lost", "moved"),
        (READ, stream(lineage=PROMOTED, is_new_slot=True), "slot_lost", "promoted"),
        (Read("abcd", 100, 81), stream(lineage=PROMOTED), "other_cluster", "other_cluster"),
        (READ, stream(is_new_slot=True, confirmed=Lsn(150)), "slot_lost", ""),
        (READ, stream(confirmed=Lsn(0), wal_end=Lsn(0)), "", ""),
        (Read("", 0), stream(is_new_slot=True, confirmed=Lsn(150)), "", ""),
        (Read("", 0), stream(), "", ""),
    ],
)
def test_what_was_read_has_a_continuation_or_a_gap_with_its_reason(
    read: Read, offered: Stream, gap: str, turn: str
) -> None:
    judged = read.judge(offered)
    assert judged.gap == gap
    assert [name for name, _ in judged.turns] == [turn] * bool(turn)


def turns(prepared: Prepared) -> list[str]:
    return [turn for turn, _ in prepared.ask()[0].turns]


def test_a_slot_that_is_there_is_adopted() -> None:
    assert turns(Prepared(slot(confirmed_lsn=Lsn(1), wal_end=Lsn(2)))) == ["adopted"]


def test_a_slot_that_is_not_there_is_made_and_missed_only_if_it_was_there() -> None:
    prepared = Prepared(None)
    assert turns(prepared) == ["created"]
    assert turns(prepared) == ["dropped", "created"]


@pytest.mark.parametrize(
    ("found", "turn"),
    [
        (slot(wal_status="lost", invalidation="wal_removed"), "lost"),
        (slot(confirmed_lsn=Lsn(3), wal_end=Lsn(2)), "ahead"),
    ],
)
def test_a_slot_that_cannot_go_on_is_made_anew(found: slots.Slot, turn: str) -> None:
    prepared = Prepared(found, "wal2json")
    assert turns(prepared) == [turn, "created"]
    assert prepared.done == ["drop", "create"]


def test_what_was_begun_is_told_once_it_is_done() -> None:
    prepared = Prepared(slot(wal_status="lost"), "wal2json")
    full = mock.patch.object(prepared, "_create", side_effect=DatabaseRefused("no free slot"))
    with full, pytest.raises(DatabaseRefused):
        prepared.ask()
    prepared.found = None
    assert turns(prepared) == ["lost", "created"]


def test_a_slot_that_is_given_up_is_made_anew_once() -> None:
    prepared = Prepared(slot(), "wal2json")
    prepared.keeper.renew("over_limit", "much")
    assert turns(prepared) == ["over_limit", "created"]
    assert turns(prepared) == ["adopted"]


def test_a_slot_whose_publications_are_gone_is_made_anew() -> None:
    prepared = Prepared(slot(plugin="pgoutput"), "pgoutput")
    prepared.published = Synced(('create publication "walstream_all" with (publish = 1)',), ())
    assert turns(prepared) == ["unpublished", "created"]


def test_tables_that_had_to_be_published_are_told_with_the_stream() -> None:
    prepared = Prepared(slot(plugin="pgoutput"), "pgoutput")
    prepared.published = Synced(("alter publication",), (), (("public", "t"),))
    stream, _ = prepared.ask()
    assert stream.anew == Anew(frozenset({("public", "t")}), 900)
    prepared.published = Synced((), ())
    assert prepared.ask()[0].anew is None


def test_a_slot_that_was_advanced_past_what_could_not_be_decoded_says_so() -> None:
    prepared = Prepared(slot(confirmed_lsn=Lsn(0x101)), "wal2json")
    assert prepared.ask()[0].lost == ""
    prepared.left_out = Lsn(0x100)
    assert prepared.ask()[0].lost == "poison_skipped"
    prepared.found = slot(confirmed_lsn=Lsn(0x102))
    assert prepared.ask()[0].lost == "", "the window has gone by since"


def test_our_own_process_that_has_not_noticed_is_ended() -> None:
    prepared = Prepared(slot(active=True, active_pid=7), "wal2json")
    prepared.keeper._server_start = 1.0
    prepared.keeper.own_pid = 7
    ended: list[int] = []

    def terminate(_: object, pid: int) -> None:
        ended.append(pid)
        prepared.found = slot()

    with mock.patch.object(slots, "terminate", terminate):
        assert turns(prepared) == ["freed", "adopted"]
    assert ended == [7]


def test_our_own_process_that_does_not_end_is_no_other_node() -> None:
    prepared = Prepared(slot(active=True, active_pid=7), "wal2json")
    prepared.keeper._server_start = 1.0
    prepared.keeper.own_pid = 7
    with mock.patch.object(slots, "terminate"), pytest.raises(DatabaseUnreachable, match="7 of our last stream"):
        prepared.ask()


def test_a_process_of_that_number_in_another_run_of_the_server_is_left_alone() -> None:
    prepared = Prepared(slot(active=True, active_pid=7), "wal2json")
    prepared.keeper._server_start = 0.5
    prepared.keeper.own_pid = 7
    with mock.patch.object(slots, "terminate") as terminate, pytest.raises(Exception, match="another process"):
        prepared.ask()
    terminate.assert_not_called()


def life() -> tuple[SlotLife, Health, Metrics]:
    health, metrics = Health(version="1", node="n"), Metrics()
    return SlotLife("s", health, metrics), health, metrics


def test_every_turn_is_counted() -> None:
    assert set(TURNS) == set(SLOT_TURNS)
    for turn in TURNS:
        told, health, metrics = life()
        with capture_logs() as lines:
            told.tell(turn, "because")
            if turn != "created":
                told.tell(turn, "because")
        assert [(line["event"], line["slot"]) for line in lines] == [(TURNS[turn][0], "s")]
        assert health.slot_turn.turn == turn
        page = metrics.page()[0].decode()
        assert f'walstream_slot_turns_total{{turn="{turn}"}} 1.0' in page
        assert page.count("walstream_slot_state{") == len(TURNS)
        assert f'walstream_slot_state{{turn="{turn}"}} 1.0' in page


def test_a_new_slot_says_what_became_of_the_old_one() -> None:
    told, health, _ = life()
    told.tell("lost", "the server has removed WAL")
    with capture_logs() as lines:
        told.tell("created", "from 0/1 on")
        told.tell("adopted", "0/1")
    assert [line.get("cause") for line in lines] == ["lost", None]
    assert health.slot_turn.turn == "adopted"
