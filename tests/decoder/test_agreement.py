"""The same work through both decoders is the same changes, whatever the names, types and values."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.decoder.messages import Reader, Table, Values, shown, speaker
from walstream.decoder import DECODERS
from walstream.model import Change, ReplicaIdentity

Work = list[tuple[str, Values | None, Values | None]]

_NASTY = [
    '},{"name":',
    '}]},"identity":[{"name":',
    "\\",
    '"',
    '\\"',
    '","schema":"x","table":"y"',
    "é",
    "😀",
    "\n",
    "a b",
]
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.lists(st.sampled_from(_NASTY) | st.text(characters, max_size=8), max_size=4).map("".join)
names = texts.filter(bool)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)

# Texts that PostgreSQL prints, by type.
printed: dict[int, st.SearchStrategy[str]] = {
    16: st.sampled_from("tf"),
    17: st.binary(max_size=9).map(lambda data: "\\x" + data.hex()),
    20: st.integers(-(2**63), 2**63 - 1).map(str),
    25: texts,
    26: st.integers(0, 2**32 - 1).map(str),
    701: st.floats().map(repr).map(lambda text: _NOT_FINITE.get(text, text)),
    1009: st.just('{NULL,"a,\\"b\\\\",c}'),
    1042: texts.map(lambda text: text + "   "),
    1114: st.datetimes().map(lambda at: str(at)) | st.sampled_from(["infinity", "-infinity", "0044-03-15 00:00:00 BC"]),
    1184: st.datetimes().map(lambda at: f"{at}+00") | st.sampled_from(["infinity", "12024-01-01 00:00:00+00"]),
    1700: st.decimals(allow_infinity=False).map(lambda number: "NaN" if number.is_nan() else f"{number:f}"),
    3802: documents.map(lambda value: json.dumps(value, ensure_ascii=False)),
    20000: st.sampled_from(["sad", "ok"]),
    20001: st.integers(0, 99).map(str),
    20002: st.just('(1,"a ""b"" \\\\")'),
    20004: st.binary(max_size=4).map(lambda data: "\\x" + data.hex()),
    20006: st.just('"a"=>"1", "b \\"c"=>NULL'),
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = st.lists(
        st.tuples(names, st.sampled_from(sorted(printed))), min_size=1, max_size=5, unique_by=lambda column: column[0]
    )
    listed = tuple(draw(columns))
    key = draw(st.lists(st.sampled_from([name for name, _ in listed]), unique=True, min_size=1))
    identity = draw(st.sampled_from([ReplicaIdentity.DEFAULT, ReplicaIdentity.FULL]))
    in_order = tuple(name for name, _ in listed if name in key)
    return Table(listed, in_order, identity, draw(names), draw(names), draw(st.integers(1, 2**32 - 1)))


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Table, Work]:
    table = draw(tables())
    whole = table.identity is ReplicaIdentity.FULL
    types = dict(table.columns)
    work: Work = []
    for action in draw(st.lists(st.sampled_from("IIUUD"), min_size=1, max_size=8)):
        new, old = ({name: draw(st.none() | printed[oid]) for name, oid in table.columns} for _ in range(2))
        old = {name: text for name, text in old.items() if whole or name in table.key}
        if action == "U" and draw(st.booleans()):  # as after an update that left its key, and some long texts, alone
            new = {name: old.get(name, text) for name, text in new.items()}
            new = {name: text for name, text in new.items() if types[name] != 25 or text is None}
        work.append((action, None if action == "D" else new, None if action == "I" else old))
    return table, work


@given(workloads())
def test_both_decoders_say_the_same_of_the_same_work(workload: tuple[Table, Work]) -> None:
    table, work = workload
    heard = []
    for plugin in DECODERS:
        says, reader = speaker(plugin), Reader(plugin, table)
        changes = []
        for action, new, old in work:
            (record,) = reader.read(says.row(action, table, new, old))
            assert isinstance(record, Change)
            changes.append(shown(record))
            for cell in (*(record.new or ()), *(record.old or ())):
                if cell is not None:
                    json.loads(cell.decode())
        heard.append(changes)
    assert heard[0] == heard[1]
