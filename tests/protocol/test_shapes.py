"""Frames of the three forms, joined from prefix, change and suffix as the fan-out does."""

from __future__ import annotations

import json

import pytest

from walstream.history.position import Position
from walstream.lsn import Lsn
from walstream.model import Change, Column, Operation, Relation, Transaction
from walstream.protocol.phoenix import VSN_1, VSN_2
from walstream.protocol.shapes import Shape, TransactionText

RELATION = Relation("public", "todos", (Column("id", 20, "int8"),), ("id",))
CHANGE = Change(RELATION, Operation.INSERT, (b"1",), None, 5, 3)
TEXT = TransactionText.of(Transaction(731, Lsn(0x16B3748), 1_772_366_400_123_456, (CHANGE,)), "c")


def frame(shape: Shape, vsn: str) -> object:
    parts = (
        shape.prefix(vsn, "realtime:t", Operation.INSERT, (7, 9)),
        shape.render(CHANGE, TEXT, None, last=True),
        shape.suffix(vsn),
    )
    return json.loads(b"".join(parts))


@pytest.mark.parametrize("vsn", [VSN_1, VSN_2])
@pytest.mark.parametrize("shape", list(Shape))
def test_a_frame_is_its_three_parts(shape: Shape, vsn: str) -> None:
    payload: object = json.loads(shape.render(CHANGE, TEXT, None, last=True))
    event = "INSERT"
    if shape is Shape.CHANGES:
        payload, event = {"ids": [7, 9], "data": payload}, "postgres_changes"
    expected: object = [None, None, "realtime:t", event, payload]
    if vsn == VSN_1:
        expected = {"topic": "realtime:t", "event": event, "payload": payload, "ref": None}
    assert frame(shape, vsn) == expected


def test_the_legacy_form_is_the_data_object_itself() -> None:
    assert Shape.LEGACY.render(CHANGE, TEXT, None, last=False) == Shape.CHANGES.render(CHANGE, TEXT, None, last=False)


def test_positions_are_what_the_history_reads() -> None:
    other = Change(RELATION, Operation.INSERT, (b"1",), None, 5, 4)
    text = TransactionText.of(Transaction(731, Lsn(0x16B3748), 1_772_366_400_123_456, (CHANGE,)), "0123abcd")
    assert text.position(CHANGE).decode() == str(Position("0123abcd", 731, Lsn(0x16B3748), 3))
    assert Position.parse(text.position(other).decode()).ordinal == 4
