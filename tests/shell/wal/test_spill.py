"""Changes come back from the file as they went in, as often and by as many readers as wanted, and the file goes."""

from __future__ import annotations

import gc
import os
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walstream.history.assemble import Assembler
from walstream.model import Begin, Change, Column, Commit, Operation, Relation, Row
from walstream.shell.wal import spill as spill_module
from walstream.shell.wal.spill import FileSpill

RELATIONS = [
    Relation("public", "things", (Column("a", 25, "text"), Column("b", 25, "text"))),
    Relation("public", "things", (Column("a", 25, "text"), Column("b", 25, "text"))),  # the same after an ALTER TABLE
    Relation("other", "é\n", ()),
]

rows: st.SearchStrategy[Row | None] = st.none() | st.lists(st.none() | st.binary(max_size=60), max_size=3).map(tuple)
changes = st.builds(
    Change,
    st.sampled_from(RELATIONS),
    st.sampled_from(Operation),
    rows,
    rows,
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 40),
)


def filled(content: list[Change]) -> FileSpill:
    spill = FileSpill()
    for change in content:
        spill.append(change)
    return spill


def same(found: list[Change], expected: list[Change]) -> None:
    assert found == expected
    for one, other in zip(found, expected, strict=True):
        assert one.relation is other.relation, "identity is a cache key"


@pytest.mark.parametrize("read_bytes", [4, 5, 64, 1 << 18])
@given(content=st.lists(changes, max_size=20), stops=st.lists(st.integers(0, 20), max_size=4))
@settings(max_examples=60)
def test_what_went_in_comes_out_for_every_reader(read_bytes: int, content: list[Change], stops: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill_module, "_READ_BYTES", read_bytes)
        stored = filled(content).changes()
        assert len(stored) == len(content)
        readers = [(iter(stored), list[Change]()) for _ in stops]
        for (reader, found), stop in zip(readers, stops, strict=True):
            found += islice(reader, stop)
        for reader, found in reversed(readers):
            found += reader
            same(found, content)
        same(list(stored), content)
        same(list(islice(stored, 2, None)), content[2:])


def test_rows_larger_than_a_read_come_whole() -> None:
    content = [
        Change(RELATIONS[0], Operation.INSERT, (b"x" * size, b"y"), None, 0, size)
        for size in (1, 3_000_000, 5, 600_000)
    ]
    same(list(filled(content).changes()), content)


def test_a_file_is_iterated_and_not_indexed() -> None:
    stored = filled([]).changes()
    assert list(stored) == []
    with pytest.raises(TypeError, match="not indexed"):
        stored[0]


def open_files() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd") if _is_there(each)}


def _is_there(descriptor: str) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").is_symlink()


def test_the_file_has_no_name_and_goes_with_its_last_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assembler = Assembler(spill_bytes=1, new_spill=FileSpill)
    assembler.begin(Begin(1, 0))
    content = [Change(RELATIONS[0], Operation.INSERT, (b"%d" % number, b"x"), None, 0, number) for number in range(9)]
    for change in content:
        assembler.change(change, 10)
    transaction, spilled = assembler.commit(Commit(9))
    assert spilled
    assert list(tmp_path.iterdir()) == []
    assert any(str(tmp_path) in name for name in open_files())
    reader = iter(transaction.changes)
    next(reader)
    del transaction
    gc.collect()
    same([content[0], *reader], content)
    del reader
    gc.collect()
    assert not any(str(tmp_path) in name for name in open_files())


def test_a_transaction_that_is_cut_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assembler = Assembler(spill_bytes=1, new_spill=FileSpill)
    assembler.begin(Begin(1, 0))
    assembler.change(Change(RELATIONS[0], Operation.INSERT, (b"1", b"x"), None, 0), 10)
    assembler.reset()
    gc.collect()
    assert not any(str(tmp_path) in name for name in open_files())


def test_a_full_disk_is_an_os_error_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    spill = filled([Change(RELATIONS[0], Operation.INSERT, (b"1", b"x"), None, 0)])
    with pytest.raises(OSError, match="No space left"):
        spill.changes()
    del spill
    gc.collect()


def test_no_place_for_a_file_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(OSError, match="No such file"):
        FileSpill()
    gc.collect()
