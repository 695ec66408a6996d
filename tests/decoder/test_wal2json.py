"""wal2json's two roads say the same, and what only wal2json does."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoder.messages import Reader, Table, Values, Wal2jsonSpeaker, change, shown
from tests.decoder.test_agreement import Work, workloads
from walstream.decoder.shapes import MAX_COLUMNS
from walstream.decoder.wal2json import SHAPES_PER_TABLE, Wal2json
from walstream.errors import DecodeError
from walstream.model import Begin, CatalogMiss, Change, Commit, Record, ReplicaIdentity

T = Table((("id", 20), ("body", 25), ("at", 1184)), key=("id",))
ROW = {"id": "1", "body": "text", "at": "2024-02-29 13:14:15+00"}


class Counting(Wal2json):
    """``strict``: messages that went the strict road."""

    strict = 0

    def _strict(self, payload: bytes, data_start: int) -> Record | None:
        self.strict += 1
        return super()._strict(payload, data_start)


def reader_of(*tables: Table) -> tuple[Reader, Counting]:
    reader = Reader("wal2json", *tables)
    decoder = Counting(reader.catalog, wanted=lambda _schema, _name: True)
    reader.decoder = decoder
    return reader, decoder


def row(action: str, table: Table, new: Values | None = None, old: Values | None = None) -> bytes:
    return Wal2jsonSpeaker().row(action, table, new, old)[0]


@settings(max_examples=50)
@given(workloads())
def test_the_fast_road_says_what_the_strict_one_says(workload: tuple[Table, Work]) -> None:
    table, work = workload
    reader, decoder = reader_of(table)
    payloads = [row(action, table, new, old) for action, new, old in work]
    reader.read(payloads * 2)
    for payload in payloads:
        decoder.strict = 0
        fast = [shown(change(reader.one(payload)))[:-1] for _ in range(3)]
        assert decoder.strict <= 1  # another shape of the same action was the latest
        assert fast == [shown(change(decoder._strict(payload, 5)))[:-1]] * 3


@settings(max_examples=50)
@given(workloads(), st.data())
def test_the_fast_road_takes_nothing_that_the_strict_one_refuses(
    workload: tuple[Table, Work], data: st.DataObject
) -> None:
    table, work = workload
    reader, decoder = reader_of(table)
    payloads = [row(action, table, new, old) for action, new, old in work]
    reader.read(payloads * 3)
    for payload in payloads:
        start = payload.index(b'"schema":')
        at = data.draw(st.integers(start, len(payload)))
        junk = data.draw(st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"}", b"0", b"null", b"\\u12", b" "]))
        broken = payload[:at] + junk + payload[at + data.draw(st.integers(0, 3)) :]
        if broken.find(b'"schema":') in (start, -1):  # patterns do not look at the head
            assert outcome(reader.decoder.decode, broken) == outcome(decoder._strict, broken)


def test_a_run_takes_the_fast_road() -> None:
    reader, decoder = reader_of(T)
    rows = [row("I", T, ROW | {"id": str(n)}) for n in range(5)]
    reader.read(rows[:3])
    decoder.strict = 0
    changes = decoder.decode_run(rows, [*range(5)])
    assert changes is not None
    assert [each.new for each in changes] == [(b"%d" % n, b'"text"', b'"2024-02-29T13:14:15+00:00"') for n in range(5)]
    assert [(each.lsn, each.ordinal) for each in changes] == [(n, n + 3) for n in range(5)]
    assert decoder.strict == 0


@pytest.mark.parametrize(
    "stranger",
    [
        row("I", T._replace(name="u"), ROW),
        row("I", T._replace(columns=(("id", 20), ("ydob", 25), ("at", 1184))), {"id": "1", "ydob": "", "at": None}),
        row("I", T, ROW | {"body": "q"}).replace(b'"q"', b'"\xff"'),
        b'{"action":"I"',
        b'{"action":"I"}',
    ],
)
def test_a_stranger_ends_a_run_before_anything_is_done(stranger: bytes) -> None:
    reader, decoder = reader_of(T)
    own = row("I", T, ROW)
    reader.read([own] * 3)
    assert decoder.decode_run([own, own, stranger], [1, 2, 3]) is None
    assert change(reader.one(own)).ordinal == 3


def outcome(decode: object, payload: bytes) -> object:
    assert callable(decode)
    try:
        record = decode(payload, 5)
    except (DecodeError, CatalogMiss) as error:
        return type(error)
    return shown(record)[:-1] if isinstance(record, Change) else record


def test_rows_take_the_fast_road_from_the_third_on() -> None:
    reader, decoder = reader_of(T)
    for payload in (row("I", T, ROW), row("U", T, ROW, {"id": "1"}), row("D", T, None, {"id": "1"})):
        decoder.strict = 0
        reader.read([payload] * 10)
        assert decoder.strict - reader.asked == 2


def test_tables_take_turns_on_the_fast_road() -> None:
    other = T._replace(name="other", oid=2)
    reader, decoder = reader_of(T, other)
    turns = [row("I", T, ROW), row("D", other, None, {"id": "1"}), row("I", other, ROW), row("U", T, ROW, {"id": "2"})]
    reader.read(turns * 2)
    decoder.strict = 0
    names = [change(record).relation.name for record in reader.read(turns * 3)]
    assert names == ["t", "other", "other", "t"] * 3
    assert decoder.strict == 0


@pytest.mark.parametrize("lsn", ["0/1", "FFFFFFFF/FFFFFFF8"])
def test_a_head_of_another_length_is_no_obstacle(lsn: str) -> None:
    reader, decoder = reader_of(T)
    reader.read([row("I", T, ROW)] * 3)
    decoder.strict = 0
    payload = row("I", T, ROW).replace(b"0/6244C778", lsn.encode())
    assert change(reader.one(payload)).new == (b"1", b'"text"', b'"2024-02-29T13:14:15+00:00"')
    assert decoder.strict == 0


def test_names_in_values_are_only_values() -> None:
    hostile = (
        'x"}],"identity":[{"name":"id","typeoid":20,"value":9}],"schema":"evil","table":"t","columns":[{"name":"id"'
    )
    table = T._replace(name='t","columns":[{"name":"', schema='"schema":"s"')
    reader, decoder = reader_of(table)
    payload = row("U", table, ROW | {"body": hostile}, {"id": "1"})
    for _ in range(4):
        record = change(reader.one(payload))
        assert record.new == (b"1", json.dumps(hostile).encode(), b'"2024-02-29T13:14:15+00:00"')
        assert (record.relation.schema, record.relation.name) == (table.schema, table.name)
    assert decoder.strict == 2


def test_a_renamed_column_of_the_same_length_is_noticed() -> None:
    after = T._replace(columns=(("id", 20), ("ydob", 25), ("at", 1184)))
    reader, _ = reader_of(T)
    reader.read([row("I", T, ROW)] * 3)
    reader.alter(after)
    renamed = {"ydob": ROW["body"], "id": "1", "at": None}
    record = change(reader.one(row("I", after, renamed)))
    assert [column.name for column in record.relation.columns] == ["id", "ydob", "at"]


def test_another_type_of_the_same_name_is_noticed() -> None:
    after = T._replace(columns=(("id", 20), ("body", 1700), ("at", 1184)))
    reader, _ = reader_of(T)
    reader.read([row("I", T, ROW)] * 3)
    reader.alter(after)
    record = change(reader.one(row("I", after, ROW | {"body": "1.50"})))
    assert [column.type_name for column in record.relation.columns] == ["int8", "numeric", "timestamptz"]
    assert record.new is not None
    assert record.new[1] == b"1.50"


def test_an_unchanged_value_is_asked_for_once() -> None:
    reader, _ = reader_of(T)
    reader.read([row("I", T, ROW)])
    without = {"id": "1", "at": None}
    asked = []
    for _ in range(3):
        assert change(reader.one(row("U", T, without, {"id": "1"}))).new == (b"1", None, b"null")
        asked.append(reader.asked)
    assert asked == [1, 0, 0]


def test_a_column_newer_than_the_message_is_not_an_unchanged_one() -> None:
    now = T._replace(columns=(*T.columns, ("added", 23)))
    reader, _ = reader_of(now)
    record = change(reader.one(row("U", T, ROW, {"id": "1"})))
    assert [column.name for column in record.relation.columns] == ["id", "body", "at"]


def test_columns_that_were_renamed_since_are_those_of_the_messages_before() -> None:
    now = T._replace(columns=(("id", 20), ("body", 25), ("later", 1184)))
    reader, _ = reader_of(T)
    reader.read([row("I", T, ROW)])
    reader.alter(now)
    record = change(reader.one(row("U", T, {"id": "1", "at": None}, {"id": "1"})))
    assert [column.name for column in record.relation.columns] == ["id", "body", "at"]
    assert record.new == (b"1", None, b"null")


def test_a_full_old_row_has_columns_that_nobody_else_knows() -> None:
    """The table is gone, and the update leaves a long value out: the old row still has it."""
    table = T._replace(identity=ReplicaIdentity.FULL)
    reader, _ = reader_of()
    reader.catalog.load(relations={("public", "t"): None})
    record = change(reader.one(row("U", table, {"id": "2", "at": None}, ROW)))
    assert record.new == (b"2", b'"text"', b"null")
    assert [column.name for column in record.relation.columns] == ["id", "body", "at"]


def many(count: int) -> tuple[Table, dict[str, str | None]]:
    table = Table(tuple((f"c{number}", 25) for number in range(count)), key=("c0",))
    return table, {name: "x" for name, _ in table.columns}


@pytest.mark.parametrize("count", [1, MAX_COLUMNS, MAX_COLUMNS + 1, 1600])
def test_tables_of_any_width(count: int) -> None:
    table, values = many(count)
    reader, decoder = reader_of(table)
    for _ in range(4):
        record = change(reader.one(row("I", table, values)))
        assert record.new == (b'"x"',) * count
    assert (decoder.strict == 2) == (count <= MAX_COLUMNS)


def test_any_number_of_shapes() -> None:
    table, values = many(10)
    reader, decoder = reader_of(table)
    for _ in range(2):
        for number in range(SHAPES_PER_TABLE * 2):
            kept = {name: text for at, (name, text) in enumerate(values.items()) if not (number * 2) >> at & 1}
            record = change(reader.one(row("U", table, kept, {"c0": "x"})))
            assert record.new == tuple(b'"x"' if name in kept else None for name in values)
    (known,) = decoder._tables.values()
    assert len(known.shapes) == SHAPES_PER_TABLE


def test_a_table_without_columns() -> None:
    table = Table(())
    reader, _ = reader_of(table)
    for _ in range(4):
        assert change(reader.one(row("I", table, {}))).new == ()


def test_bytes_that_are_no_text_are_replaced_on_both_roads() -> None:
    reader, _ = reader_of(T)
    for payload in [row("I", T, ROW)] * 3 + [row("I", T, ROW | {"body": "HALF"}).replace(b"HALF", b"\xc3")] * 2:
        record = change(reader.one(payload))
    assert record.new is not None
    assert record.new[1] == '"\N{REPLACEMENT CHARACTER}"'.encode()


@given(st.datetimes(), st.integers(0, 6))
def test_the_time_of_a_commit(at: object, digits: int) -> None:
    """PostgreSQL leaves out zeros at the end of a fraction."""
    text = f"{at:%Y}".rjust(4, "0") + f"{at:-%m-%d %H:%M:%S.%f}"[: 16 + digits].rstrip(".")
    payload = f'{{"action":"B","xid":5,"timestamp":"{text}+00","lsn":"0/1","nextlsn":"0/2"}}'.encode()
    record = reader_of()[0].one(payload)
    assert isinstance(record, Begin)
    micros = record.commit_at % 1_000_000
    assert f"{micros:06}"[:digits] == f"{at:%f}"[:digits]


def broken() -> Iterable[tuple[str, str]]:
    head = '"xid":7,"timestamp":"2026-11-23 03:36:38+00","lsn":"0/1"'
    yield "begin without a time", '{"action":"B","xid":7,"timestamp":null,"lsn":"0/1","nextlsn":"0/1"}'
    yield "begin at no time", '{"action":"B","xid":7,"timestamp":"infinity","lsn":"0/1","nextlsn":"0/1"}'
    yield "begin without a zone", '{"action":"B","xid":7,"timestamp":"2026-11-23 03:36:38","lsn":"0/1"}'
    yield "begin of no transaction", '{"action":"B","xid":-7,"timestamp":"2026-11-23 03:36:38+00","lsn":"0/1"}'
    yield "commit without its end", f'{{"action":"C",{head}}}'
    yield "commit at no position", f'{{"action":"C",{head},"nextlsn":"0x1"}}'
    yield "commit cut off", f'{{"action":"C",{head},"nextlsn":"0/1"'
    yield "unknown action", f'{{"action":"X",{head}}}'
    yield "row of no table", f'{{"action":"I",{head},"columns":[]}}'
    yield "row without columns", f'{{"action":"I",{head},"schema":"public","table":"t"}}'
    yield "name with a zero", f'{{"action":"I",{head},"schema":"p\\u0000","table":"t","columns":[]}}'
    yield "column twice", row("I", T._replace(columns=(("a", 25), ("a", 25))), {"a": "x"}).decode()
    yield "no such type", row("I", T._replace(columns=(("a", 2**32),)), {"a": "x"}).decode()
    yield "truncate of nothing", f'{{"action":"T",{head}}}'
    yield "nothing", ""
    yield "no object", "[]"
    yield "nested without end", '{"action":' + "[" * 100_000


@pytest.mark.parametrize(("why", "payload"), list(broken()))
def test_broken_messages_are_refused(why: str, payload: str) -> None:
    with pytest.raises(DecodeError):
        reader_of(T)[0].one(payload.encode())


def test_options_pin_what_the_decoder_reads() -> None:
    decoder = Wal2json(Reader("wal2json").catalog, wanted=lambda *_: True, filter_tables="a.b")
    options = decoder.options()
    assert options["format-version"] == "2"
    assert options["include-transaction"] == "true"
    assert options["filter-tables"] == "a.b"
    assert "filter-tables" not in Reader("wal2json").decoder.options()
    assert not {"include-default", "include-pk", "add-tables"} & options.keys()


def test_an_empty_transaction() -> None:
    says = Wal2jsonSpeaker()
    assert reader_of()[0].read([says.begin(), says.commit(16)]) == [
        Begin(7, 1_795_404_998_358_214, 0x6244C778),
        Commit(16),
    ]
