"""Runs of INSERTs: what every decoder says of many at once is what it says of each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoder.messages import Reader, Table, change, shown, speaker
from tests.decoder.test_agreement import Work, workloads
from walstream.decoder import DECODERS
from walstream.errors import DecodeError
from walstream.model import CatalogMiss, TypeInfo

PLUGINS = pytest.mark.parametrize("plugin", DECODERS)

T = Table((("id", 20), ("body", 25), ("at", 1184)), key=("id",))
OTHER = T._replace(name="u", oid=99)
ROW = {"id": "1", "body": "text", "at": "2024-02-29 13:14:15+00"}


def rows(plugin: str, table: Table, count: int, **values: str) -> list[bytes]:
    """INSERTs, without the description that pgoutput sends before the first of them."""
    says = speaker(plugin)
    return [says.row("I", table, ROW | {"id": str(n)} | values)[-1] for n in range(count)]


def reader_of(plugin: str, *tables: Table) -> Reader:
    """A reader that has met these tables."""
    says, reader = speaker(plugin), Reader(plugin, *tables)
    for table in tables:
        for _ in range(3):
            reader.read(says.row("I", table, ROW))
    reader.read([says.begin()])
    return reader


@PLUGINS
@settings(max_examples=50)
@given(workload=workloads(), data=st.data())
def test_a_run_says_what_its_messages_say(plugin: str, workload: tuple[Table, Work], data: st.DataObject) -> None:
    table, work = workload
    news = [new for action, new, _ in work if action == "I" and new is not None]
    if not news:
        return
    says = speaker(plugin)
    first = says.row("I", table, news[0])
    run = [first[-1], *[says.row("I", table, new)[-1] for new in news]]
    reader, twin = Reader(plugin, table), Reader(plugin, table)
    for each in (reader, twin):
        each.read([*first, *first[-1:] * 2, says.begin()])
    at = data.draw(st.integers(0, len(run[0])))
    junk = data.draw(st.just(b"") | st.binary(max_size=2))
    if junk:
        run.append(run[0][:at] + junk + run[0][at:])
    starts = [*range(7, 7 + len(run))]
    changes = reader.decoder.decode_run(run, starts)
    if changes is not None:  # else nothing was counted
        for found, payload, start in zip(changes, run, starts, strict=True):
            assert shown(found) == shown(change(twin.decoder.decode(payload, start)))
    after = [shown(change(each.one(run[0]))) for each in (reader, twin)]
    assert after[0] == after[1]


@PLUGINS
@pytest.mark.parametrize("body", ["text", "é", "😀"])
def test_rows_of_one_table_are_a_run(plugin: str, body: str) -> None:
    reader = reader_of(plugin, T)
    for first in (0, 5):
        changes = reader.decoder.decode_run(rows(plugin, T, 5, body=body), [*range(5)])
        assert changes is not None
        at = b'"2024-02-29T13:14:15+00:00"'
        assert [each.new for each in changes] == [(b"%d" % n, f'"{body}"'.encode(), at) for n in range(5)]
        assert [(each.lsn, each.ordinal) for each in changes] == [(n, n + first) for n in range(5)]


@PLUGINS
def test_tables_take_turns_with_their_runs(plugin: str) -> None:
    reader = reader_of(plugin, T, OTHER)
    for table in (T, OTHER, T, OTHER):
        changes = reader.decoder.decode_run(rows(plugin, table, 3), [1, 2, 3])
        assert changes is not None
        assert {each.relation.name for each in changes} == {table.name}


@PLUGINS
def test_a_table_that_is_new_or_unwanted_has_no_run_yet(plugin: str) -> None:
    answers = {"t": True, "u": False}
    reader = Reader(plugin, T, OTHER, wanted=lambda _schema, name: answers[name])
    says = speaker(plugin)
    for table in (T, OTHER):
        assert reader.decoder.decode_run(rows(plugin, table, 2), [1, 2]) is None
        reader.read(says.row("I", table, ROW) * 3)
    assert reader.decoder.decode_run(rows(plugin, OTHER, 2), [1, 2]) is None
    assert reader.decoder.decode_run(rows(plugin, T, 2), [1, 2]) is not None
    reader.decoder.replan()
    assert reader.decoder.decode_run(rows(plugin, T, 2), [1, 2]) is None


@PLUGINS
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", ["another table", "cut off", "too long", "other columns"])
def test_a_stranger_ends_a_run_before_anything_is_done(plugin: str, kind: str, place: int) -> None:
    reader = reader_of(plugin, T, OTHER)
    own = rows(plugin, T, 3)
    narrow = T._replace(columns=T.columns[:2])
    run = list(own)
    run[place] = {
        "another table": rows(plugin, OTHER, 1)[0],
        "cut off": own[0][:-2],
        "too long": own[0] + b"}",
        "other columns": speaker(plugin).row("I", narrow, {"id": "1", "body": "b"})[-1],
    }[kind]
    assert reader.decoder.decode_run(run, [1, 2, 3]) is None
    assert change(reader.one(own[0])).ordinal == 0


@PLUGINS
def test_an_altered_composite_in_a_run_is_asked_for(plugin: str) -> None:
    table = Table((("p", 20002),))
    says, reader = speaker(plugin), Reader(plugin, table)
    reader.read([*says.row("I", table, {"p": "(1,a)"}), *says.row("I", table, {"p": "(1,a)"})[-1:] * 2, says.begin()])
    fields = (("n", 23), ("t", 25), ("z", 16))
    reader.truth.load(types={20002: TypeInfo(20002, "pair", kind="c", category="C", fields=fields)})
    run = [says.row("I", table, {"p": text})[-1] for text in ("(1,a)", "(2,b,t)", "(3,c,f)")]
    with pytest.raises(CatalogMiss) as miss:
        reader.decoder.decode_run(run, [1, 2, 3])
    reader.load(miss.value)
    changes = reader.decoder.decode_run(run, [1, 2, 3])
    assert changes is not None
    assert [each.new for each in changes] == [
        (b'{"n":1,"t":"a"}',), (b'{"n":2,"t":"b","z":true}',), (b'{"n":3,"t":"c","z":false}',)
    ]  # fmt: skip
    assert [each.ordinal for each in changes] == [0, 1, 2]


@PLUGINS
@given(kinds=st.text("BICUDTM", max_size=12), first=st.integers(0, 12))
def test_messages_are_cut_around_runs_of_inserts(plugin: str, kinds: str, first: int) -> None:
    payloads = [f'{{"action":"{kind}"'.encode() if plugin == "wal2json" else kind.encode() for kind in kinds]
    pieces = list(Reader(plugin).decoder.runs(payloads, first))
    assert [at for start, end in pieces for at in range(start, end)] == [*range(first, len(kinds))]
    for start, end in pieces:
        assert end - start == 1 or set(kinds[start:end]) == {"I"}
        assert kinds[end - 1] != "I" or kinds[end : end + 1] != "I", "a run is cut"


@PLUGINS
@pytest.mark.parametrize("broken", [b"", b"{"])
def test_what_is_no_message_is_cut_out_too(plugin: str, broken: bytes) -> None:
    reader = reader_of(plugin, T)
    payloads = [*rows(plugin, T, 2), broken]
    pieces = list(reader.decoder.runs(payloads, 0))
    assert pieces[-1] == (2, 3)
    assert [at for start, end in pieces for at in range(start, end)] == [0, 1, 2]
    with pytest.raises(DecodeError):
        reader.one(broken)
