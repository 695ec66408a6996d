"""From which commit on the pipeline captures by which plan."""

from __future__ import annotations

from tests.shell.wal.test_pipeline import BEFORE, Rig, insert, planned, scene
from walstream.capture.plan import Plan, subscription_row
from walstream.history.plan_log import ANY_TABLE, CHANGES_MAX, Anew
from walstream.history.resume import PlanChange
from walstream.lsn import Lsn
from walstream.model import Begin, Commit, Operation, Snapshot

LOADED = Snapshot(50, 50, frozenset(), 10_000, 10_000, 1.0)
"""With which the plan was loaded: what is read again lies before it."""

ROUND = 1 << 32


def test_a_plan_is_obeyed_from_its_commit_on() -> None:
    async def main(rig: Rig) -> None:
        await rig.transaction(insert())
        await rig.transaction(planned("public.things"), insert())  # in its own transaction it holds not yet
        captured = await rig.transaction(insert())
        await rig.transaction(planned("public.things", Operation.DELETE))
        await rig.transaction(insert())
        assert rig.commits == [captured]

    scene(main)


def test_a_plan_that_was_loaded_is_not_undone_by_what_is_read_again() -> None:
    """The plan of now has rows whose DELETE and INSERT come once more from the window."""

    async def main(rig: Rig) -> None:
        await rig.transaction(planned("public.things", Operation.DELETE), xid=40)
        end = await rig.transaction(insert(), xid=60)
        assert rig.commits == [end]

    scene(main, "public.things", snapshot=LOADED)


def test_a_change_of_the_plan_that_is_read_again_has_overtaken_what_was_committed_before_it() -> None:
    async def main(rig: Rig) -> None:
        told: list[PlanChange] = []

        def tell(change: PlanChange, joins: object) -> None:
            told.append(change)
            assert rig.ring.end == change.commit_lsn, "the position of the gap is not before it"

        rig.pipeline.on_overtaken = tell
        at = await rig.transaction(planned("public.things", Operation.DELETE), xid=40)
        assert told == [PlanChange(Lsn(at), frozenset({("public", "things")}))]
        await rig.transaction(planned("public.things"), xid=60)
        assert len(told) == 1, "that one is obeyed from its commit on"

    scene(main, snapshot=LOADED)


def test_a_stream_that_goes_on_obeys_the_plan_as_of_what_was_read_last() -> None:
    """What was committed while nobody read was committed under that one; the plan of now may be newer."""

    async def main(rig: Rig) -> None:
        first = await rig.transaction(insert())
        rig.plan = Plan([], own_schema="realtime")
        await rig.open()
        second = await rig.transaction(insert())
        await rig.transaction(planned("public.things", Operation.DELETE))
        await rig.transaction(insert())
        assert rig.commits == [first, second]
        rig.plan = Plan([subscription_row("public.things", "public.things", ["*"])], own_schema="realtime")
        await rig.open(is_new=True)  # what changed it may never come
        third = await rig.transaction(insert())
        assert rig.commits == [first, second, third]

    scene(main, "public.things")


def test_the_changes_that_are_remembered_are_bounded_and_none_is_forgotten() -> None:
    async def main(rig: Rig) -> None:
        ends = [await rig.transaction(planned(f"public.t{at % 2}", id=f"{at}")) for at in range(CHANGES_MAX + 2)]
        changes = rig.pipeline.plan_changes
        assert len(changes) == CHANGES_MAX
        assert [change.commit_lsn for change in changes] == ends[2:]
        for table in ("t0", "t1"):
            assert any(change.concerns(ends[1], ("public", table)) for change in list(changes)[:1])
        assert not any(change.concerns(ends[-2], ("public", "t0")) for change in changes)

    scene(main)


def test_whoever_aborts_or_is_cut_off_changes_no_plan() -> None:
    async def main(rig: Rig) -> None:
        await rig.feed(Begin(70, 0), planned("public.things"))
        await rig.open()
        await rig.transaction(insert())
        assert rig.commits == []

    scene(main)


def test_xids_that_have_come_round_do_not_make_a_change_of_the_plan_look_old() -> None:
    """Half of all xids after the plan was loaded, the next one is taken for one of before it."""

    async def main(rig: Rig) -> None:
        await rig.transaction(planned("public.things", Operation.DELETE), xid=60 + ROUND // 2, at=LOADED.insert_lsn + 1)
        await rig.transaction(insert(), xid=61 + ROUND // 2, at=LOADED.insert_lsn + 2)
        assert rig.commits == []

    scene(main, "public.things", snapshot=LOADED._replace(xmin=ROUND + 50, xmax=ROUND + 50))


def replaced(rig: Rig, *tables: str) -> list[Anew]:
    """The plan's table is another one. Returns what is told of that."""
    told: list[Anew] = []
    rig.pipeline.on_anew = told.append
    rig.plan_oid += 1
    rig.plan = Plan([subscription_row(name, name, ["*"]) for name in tables], own_schema="realtime")
    return told


def test_the_plan_of_another_table_is_obeyed_from_the_next_transaction_on() -> None:
    async def main(rig: Rig) -> None:
        first = await rig.transaction(insert())
        told = replaced(rig)
        await rig.feed(Begin(70, 0), insert())
        await rig.pipeline.reload()
        assert told == [Anew(ANY_TABLE, BEFORE.insert_lsn)]
        await rig.feed(insert(2), Commit(first + 5))
        await rig.transaction(insert())
        assert rig.commits == [first, first + 5, first + 5], "of a transaction that is under way all or nothing"
        replaced(rig, "public.things")
        await rig.pipeline.reload()
        last = await rig.transaction(insert())
        assert rig.commits[3:] == [last]

    scene(main, "public.things")


def test_a_stream_that_goes_on_takes_the_plan_of_another_table() -> None:
    async def main(rig: Rig) -> None:
        first = await rig.transaction(insert())
        told = replaced(rig)
        await rig.open()
        assert len(told) == 1
        await rig.transaction(insert())
        assert rig.commits == [first]
        await rig.open()
        assert len(told) == 1

    scene(main, "public.things")
