"""Each oracle against logs that keep its promise and logs that break it: no server, no daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from integration.faults import oracles
from integration.faults.observed import (
    Audit,
    Committed,
    Entry,
    Event,
    Gap,
    Got,
    Joined,
    Log,
    Lost,
    Resumed,
    Sample,
    Tally,
    Timing,
    Untold,
    Usage,
)


def events(end: int) -> list[Event]:
    return [Event("items", end * 10), Event("docs", end * 10 + 1), Event("items", end * 10 + 2)]


TRUTH = [
    Committed(
        end, end, float(end), [Event("items", end * 10), Event("docs", end * 10 + 1), Event("items", end * 10 + 2)]
    )
    for end in (100, 200, 300, 400)
]


def got(end: int, ordinal: int, *, last: bool | None = None, digest: int | None = None) -> Got:
    table = ("items", "docs", "items")[ordinal % 3]
    return Got(
        0.0, end, end, ordinal, table, end * 10 + ordinal if digest is None else digest,
        ordinal == 2 if last is None else last, 0, 0, None,
    )  # fmt: skip


def whole(*ends: int) -> list[Entry]:
    return [got(end, ordinal) for end in ends for ordinal in range(3)]


def log(*entries: Entry, tables: Sequence[str] | None = None) -> Log:
    return Log("s", None if tables is None else frozenset(tables), entries)


BEGIN = Joined(0.0, 0)
KEPT: dict[str, list[Entry]] = {
    "everything": [BEGIN, *whole(100, 200, 300, 400)],
    "from the join on": [Joined(0.0, 200), *whole(300, 400)],
    "one more than was promised": [Joined(0.0, 200), *whole(200, 300, 400)],
    "nobody knows from where": [Joined(0.0, None), *whole(300, 400)],
    "resumed between two": [BEGIN, *whole(100, 200), Lost(0.0, ""), Resumed(0.0), *whole(300, 400)],
    "resumed within one": [
        BEGIN, *whole(100), got(200, 0), Lost(0.0, ""), Resumed(0.0), got(200, 1), got(200, 2), *whole(300, 400),
    ],
    "begun anew": [BEGIN, *whole(100), got(200, 0), Lost(0.0, ""), Joined(0.0, 300), *whole(400)],
    "begun anew, and told the same again": [
        BEGIN, *whole(100, 200), Lost(0.0, ""), Joined(0.0, None), *whole(200, 300, 400),
    ],
    "still away": [BEGIN, *whole(100), Lost(0.0, "")],
}  # fmt: skip
BROKEN: dict[str, list[Entry]] = {
    "a hole": [BEGIN, *whole(100, 300, 400)],
    "a hole at the join": [Joined(0.0, 100), *whole(300, 400)],
    "a hole within": [BEGIN, got(100, 0), got(100, 2), *whole(200, 300, 400)],
    "the end never came": [BEGIN, *whole(100, 200, 300)],
    "nothing ever came": [BEGIN],
    "twice": [BEGIN, got(100, 0), got(100, 0), got(100, 1), got(100, 2), *whole(200, 300, 400)],
    "twice after resuming": [BEGIN, *whole(100, 200), Lost(0.0, ""), Resumed(0.0), *whole(200, 300, 400)],
    "two reordered": [BEGIN, got(100, 1), got(100, 0), got(100, 2), *whole(200, 300, 400)],
    "two transactions reordered": [BEGIN, *whole(100, 300, 200, 400)],
    "other contents": [BEGIN, got(100, 0, digest=7), got(100, 1), got(100, 2), *whole(200, 300, 400)],
    "what nobody committed": [BEGIN, *whole(100, 150, 200, 300, 400)],
    "a hole behind a resumption": [BEGIN, *whole(100), Lost(0.0, ""), Resumed(0.0), *whole(300, 400)],
    "told of a gap": [BEGIN, *whole(100), Gap(0.0, "slot_lost"), *whole(300, 400)],
}


@pytest.mark.parametrize("entries", KEPT.values(), ids=KEPT)
def test_what_keeps_every_promise_is_not_complained_about(entries: list[Entry]) -> None:
    logs = [log(*entries)]
    assert oracles.exactly_once_in_order(logs, TRUTH) == []
    assert oracles.no_silent_gap(logs, TRUTH) == []
    assert oracles.whole_transactions(logs, TRUTH) == []


@pytest.mark.parametrize("entries", BROKEN.values(), ids=BROKEN)
def test_p1_complains(entries: list[Entry]) -> None:
    assert oracles.exactly_once_in_order([log(*entries)], TRUTH)


def test_p1_may_be_told_of_a_gap_where_nothing_else_can_be_done() -> None:
    entries = [BEGIN, *whole(100), Gap(0.0, "slot_lost", 200), *whole(300, 400)]
    assert oracles.exactly_once_in_order([log(*entries)], TRUTH, may_gap=True) == []
    entries = [BEGIN, *whole(100), Gap(0.0, "slot_lost", 200), *whole(400)]
    assert oracles.exactly_once_in_order([log(*entries)], TRUTH, may_gap=True)


def test_who_asked_for_one_table_misses_no_other() -> None:
    only = [entry for entry in whole(100, 200, 300, 400) if isinstance(entry, Got) and entry.table == "docs"]
    marked = [entry._replace(is_last=True) for entry in only]
    assert oracles.exactly_once_in_order([log(BEGIN, *marked, tables=["docs"])], TRUTH) == []
    assert oracles.whole_transactions([log(BEGIN, *marked, tables=["docs"])], TRUTH) == []
    assert oracles.whole_transactions([log(BEGIN, *only, tables=["docs"])], TRUTH)
    assert oracles.exactly_once_in_order([log(BEGIN, *marked[1:], tables=["docs"])], TRUTH)


@pytest.mark.parametrize("name", ["a hole", "a hole within", "the end never came", "a hole behind a resumption"])
def test_p3_complains_of_what_is_missing_without_a_word(name: str) -> None:
    assert oracles.no_silent_gap([log(*BROKEN[name])], TRUTH)


@pytest.mark.parametrize("name", ["twice", "told of a gap"])
def test_p3_does_not_complain_of_the_rest(name: str) -> None:
    assert oracles.no_silent_gap([log(*BROKEN[name])], TRUTH) == []


def test_p3_complains_of_who_named_a_position_and_was_told_nothing() -> None:
    entries = [BEGIN, *whole(100), Lost(0.0, ""), Untold(0.0, "position"), *whole(200, 300, 400)]
    assert len(oracles.no_silent_gap([log(*entries)], TRUTH)) == 1


def audited(*, rows: int = 2, checksum: int = 30, moved: int = 0) -> tuple[Log, Committed]:
    committed = Committed(100, 100, 100.0, [Event("items", 1), Event("accounts", 2), Event("audit", 3)])
    entries: list[Entry] = [
        BEGIN,
        Got(0.0, 100, 100, 0, "items", 1, False, 10, 0, None),
        Got(0.0, 100, 100, 1, "accounts", 2, False, 20, moved, None),
        Got(0.0, 100, 100, 2, "audit", 3, True, 0, 0, Audit(1, 1, rows, checksum)),
    ]
    return Log("s", None, entries), committed


@pytest.mark.parametrize(("change", "count"), [({}, 0), ({"rows": 3}, 1), ({"checksum": 31}, 1), ({"moved": 5}, 1)])
def test_p2_adds_up_what_a_transaction_says_of_itself(change: dict[str, int], count: int) -> None:
    seen, committed = audited(**change)
    assert len(oracles.whole_transactions([seen], [committed])) == count


@pytest.mark.parametrize(
    "entries",
    [
        [BEGIN, got(100, 0), got(100, 1), *whole(200, 300, 400)],
        [BEGIN, got(100, 0, last=True), got(100, 1), got(100, 2), *whole(200, 300, 400)],
        [BEGIN, got(100, 0), got(100, 1), got(100, 2, last=False), *whole(200, 300, 400)],
        [BEGIN, *whole(100), got(200, 0), Lost(0.0, ""), Resumed(0.0), *whole(300, 400)],
    ],
    ids=["a part is missing", "marked too early", "not marked", "the rest never came"],
)
def test_p2_complains(entries: list[Entry]) -> None:
    assert oracles.whole_transactions([log(*entries)], TRUTH)


def at(seconds: float, confirmed: int) -> Sample:
    return Sample(seconds, confirmed)


@pytest.mark.parametrize(
    ("sample", "count"),
    [
        (at(401, 0), 0),
        (at(401, 50), 0),  # below the oldest commit of all
        (at(401, 299), 0),  # commits at 300 and 400 are within 150 s, that at 200 is not
        (at(401, 300), 1),
        (at(401, 450), 1),
        (at(900, 450), 0),  # nothing is in the window
        (at(100.1, 100), 0),  # within the slack
    ],
)
def test_p4_knows_what_the_window_has_to_hold(sample: Sample, count: int) -> None:
    assert len(oracles.confirmed_behind_the_window([sample], TRUTH, 150.0)) == count


def test_p8_complains_of_what_took_too_long() -> None:
    assert oracles.good_guest([Timing("a stop", 4.9, 5.0)]) == []
    assert len(oracles.good_guest([Timing("a stop", 5.1, 5.0)])) == 1


def test_p9_complains_of_what_was_read_after_the_slot_was_lost() -> None:
    assert oracles.reads_nothing_more(whole(100, 200), 200) == []
    assert oracles.reads_nothing_more([], 200) == []
    assert "told 2 more" in oracles.reads_nothing_more([*whole(200), got(201, 0), Resumed(0.0)], 200)[0]


def test_p6_complains_of_memory() -> None:
    assert oracles.small_enough(256, 256) == []
    assert len(oracles.small_enough(257, 256)) == 1


def tally(*digests: int, is_over: bool = True) -> Tally:
    found = Tally()
    for digest in digests:
        found = found.and_then(digest, is_last=is_over and digest is digests[-1])
    return found


def test_p6_is_content_with_what_was_counted_whole() -> None:
    items = {end: tally(end * 10, end * 10 + 2) for end in (200, 300)}
    assert oracles.all_counted(items, TRUTH, "items") == []
    assert oracles.all_counted({300: tally(3001)}, TRUTH, "docs") == []


@pytest.mark.parametrize(
    "tallies",
    [
        {},
        {100: tally(1000, 1002), 300: tally(3000, 3002)},
        {100: tally(1000)},
        {100: tally(1002, 1000)},
        {100: tally(1000, 1002, 1002)},
        {100: tally(1000, 1003)},
        {100: tally(1000, 1002, is_over=False)},
        {100: tally(1000, 1002), 101: tally(5)},
    ],
    ids=[
        "nothing",
        "one is missing",
        "a part",
        "reordered",
        "twice",
        "other contents",
        "not marked",
        "never committed",
    ],
)
def test_p6_complains_of_what_was_counted(tallies: dict[int, Tally]) -> None:
    assert len(oracles.all_counted(tallies, TRUTH, "items")) == 1


def test_pauses_are_judged_by_their_95th_percentile() -> None:
    assert oracles.back_in_time([], 3.0) == []
    assert oracles.back_in_time([1.0] * 99 + [60.0], 3.0) == []
    assert oracles.back_in_time([1.0] * 90 + [60.0] * 10, 3.0)


@pytest.mark.parametrize("oracle", [oracles.exactly_once_in_order, oracles.no_silent_gap])
def test_complaints_are_counted_when_there_are_many(oracle: Callable[..., list[str]]) -> None:
    truth = [Committed(end, end, 0.0, [Event("items", end)]) for end in range(1, 100)]
    entries: list[Entry] = [BEGIN, *(Got(0.0, end, end, 0, "items", end, True, 0, 0, None) for end in range(2, 100, 2))]
    found = oracle([log(*entries)], truth)
    assert len(found) == 4
    assert "more" in found[-1]


def life(pid: int, grown: int = 0, opened: int = 0, seconds: int = 1200) -> list[Usage]:
    """``grown`` and ``opened``: by the hour. The first minutes fill caches."""
    return [
        Usage(float(at), pid, (60 << 20) + min(at, 200) * 100_000 + grown * at // 3600, 20 + opened * at // 3600)
        for at in range(0, seconds, 2)
    ]


@pytest.mark.parametrize(
    ("usages", "complains"),
    [
        (life(1), ""),
        (life(1) + life(2), ""),
        (life(1, grown=200 << 20, seconds=480), ""),  # too short to tell
        (life(1) + life(2, grown=30 << 20), "process 2 grew by"),
        (life(1, opened=20), "descriptors more after 13 minutes"),
    ],
)
def test_a_life_that_grows_is_found(usages: list[Usage], complains: str) -> None:
    found = oracles.flat_lives(usages)
    assert len(found) == bool(complains)
    assert complains in "".join(found)
