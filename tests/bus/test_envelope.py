"""Items in envelopes: they come out as they went in, in order, and none is too large to travel."""

from __future__ import annotations

import contextlib
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.bus.envelope import (
    ALONGSIDE,
    ORDERED,
    Envelope,
    Packer,
    Parcel,
    Pieces,
    decode_content,
    decode_envelope,
    encode_item,
)
from walstream.bus.items import (
    AskState,
    BroadcastItem,
    Bye,
    ChannelsChanged,
    Hello,
    Item,
    PresenceItem,
    StateItem,
    StoredItem,
)
from walstream.errors import BusError
from walstream.rooms import Broadcast, PresenceEntry, RoomKey

ROOM = 5969
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rooms = st.builds(RoomKey, texts, st.booleans())
broadcasts = st.builds(
    Broadcast,
    room=rooms,
    event=texts,
    payload=st.binary(max_size=300),
    binary=st.booleans(),
    whole=st.binary(max_size=50),
    id=texts,
    seq=st.none() | st.integers(0, 2**63 - 1),
    sent_at=texts,
)
entries = st.builds(
    PresenceEntry, room=rooms, entry=texts, key=texts, ref=texts, meta=st.none() | st.binary(max_size=300)
)
series = st.lists(entries, max_size=4).map(tuple)
items: st.SearchStrategy[Item] = st.one_of(
    st.builds(BroadcastItem, broadcasts),
    st.builds(StoredItem, st.lists(texts, max_size=4).map(tuple)),
    st.builds(PresenceItem, series),
    st.builds(StateItem, st.integers(0, 2**31), st.integers(0, 100), st.booleans(), series),
    st.sampled_from([AskState(), ChannelsChanged(), Hello(), Bye()]),
)


def packer(room: int = ROOM, bytes_max: int = 1 << 20) -> Packer:
    ids = itertools.count()
    return Packer("a", room=room, bytes_max=bytes_max, new_id=lambda: f"id{next(ids)}")


def put(to: Packer, *given: Item) -> None:
    for item in given:
        encoded = encode_item(item)
        assert encoded is not None
        to.put(encoded)


def read(parcel: Parcel) -> list[Item]:
    envelope = decode_envelope(parcel.envelope)
    return decode_content(parcel.content) if envelope.stored else envelope.items


def large(size: int) -> BroadcastItem:
    return BroadcastItem(Broadcast(room=RoomKey("r"), payload=b"x" * size))


@given(st.lists(items, max_size=40), st.integers(200, 6000))
def test_items_come_out_as_they_went_in_and_no_envelope_is_too_large(given: list[Item], room: int) -> None:
    outgoing = packer(room)
    put(outgoing, *given)
    parcels = outgoing.take(7, bytes_max=1 << 30)
    assert [item for parcel in parcels for item in read(parcel)] == given
    assert all(len(parcel.envelope) <= room for parcel in parcels)
    envelopes = [decode_envelope(parcel.envelope) for parcel in parcels]
    assert [envelope.number for envelope in envelopes] == list(range(1, len(parcels) + 1))
    assert {(envelope.node, envelope.lane, envelope.at) for envelope in envelopes} <= {("a", ORDERED, 7)}
    assert sum(parcel.items for parcel in parcels) == len(given)


def test_many_small_items_share_an_envelope() -> None:
    outgoing = packer()
    put(outgoing, *[large(40)] * 200)
    assert len(outgoing.take(0, bytes_max=1 << 20)) == 2


def test_an_item_too_large_for_an_envelope_is_stored_under_a_name_in_it_and_keeps_its_place() -> None:
    outgoing = packer()
    put(outgoing, Hello(), large(8000), AskState())
    parcels = outgoing.take(0, bytes_max=1 << 20)
    assert [parcel.stored for parcel in parcels] == ["", "id0", ""]
    assert decode_envelope(parcels[1].envelope).stored == "id0"
    assert [read(parcel) for parcel in parcels] == [[Hello()], [large(8000)], [AskState()]]


def test_taking_ends_at_the_envelope_that_reaches_the_bound() -> None:
    outgoing = packer()
    put(outgoing, *[large(5000)] * 4)
    assert len(outgoing.take(0, bytes_max=6000)) == 2
    assert len(outgoing) == 2


def test_what_does_not_fit_into_the_queue_is_lost_and_leaves_a_hole() -> None:
    outgoing = packer(bytes_max=100)
    put(outgoing, large(50), large(50), Hello())
    numbers = [decode_envelope(parcel.envelope).number for parcel in outgoing.take(0, bytes_max=1000)]
    assert numbers == [2]
    put(outgoing, Hello())
    assert decode_envelope(outgoing.take(0, bytes_max=1000)[0].envelope).number == 3


def test_dropping_counts_and_leaves_a_hole() -> None:
    outgoing = packer()
    assert outgoing.drop() == 0
    put(outgoing, Hello(), Hello())
    assert outgoing.drop() == 2
    put(outgoing, Hello())
    assert decode_envelope(outgoing.take(0, bytes_max=1)[0].envelope).number == 2


@given(st.lists(items, max_size=10), st.integers(200, 6000))
def test_items_alongside_come_out_as_they_went_in_with_large_ones_cut(given: list[Item], room: int) -> None:
    outgoing = packer(room)
    parcels = outgoing.alongside([encoded for item in given if (encoded := encode_item(item))], 5)
    envelopes = [decode_envelope(parcel.envelope) for parcel in parcels]
    assert [envelope.number for envelope in envelopes] == list(range(1, len(parcels) + 1))
    assert {envelope.lane for envelope in envelopes} <= {ALONGSIDE}
    assert all(len(parcel.envelope) <= room for parcel in parcels)
    pieces = Pieces()
    found = [item for each in envelopes for item in (pieces.add(each) if each.parts else each.items)]
    assert found == given
    assert sum(parcel.items for parcel in parcels) == len(given)


def cut(size: int, room: int = ROOM) -> list[Envelope]:
    encoded = encode_item(large(size))
    assert encoded is not None
    return [decode_envelope(parcel.envelope) for parcel in packer(room).alongside([encoded], 5)]


def test_an_item_of_too_many_pieces_is_left_out() -> None:
    assert len(cut(1_500_000)) > 200
    assert cut(2_000_000) == []


@given(st.data())
def test_an_item_comes_whole_or_not_at_all(data: st.DataObject) -> None:
    envelopes = cut(1000, 300)
    come = data.draw(st.lists(st.sampled_from(envelopes), max_size=12))
    pieces = Pieces()
    for each in [*come, *envelopes]:
        assert pieces.add(each) in ([], [large(1000)])
    assert pieces.add(envelopes[-1]) == []


def test_a_piece_of_nothing_is_refused() -> None:
    whole = cut(8000)[0]
    for wrong in ({"part": 5}, {"part": -1}, {"parts": 1_000_000}, {"parts": 1}):
        with pytest.raises(BusError):
            Pieces().add(msgspec.structs.replace(whole, **wrong))


def test_an_item_that_cannot_be_encoded_is_none() -> None:
    assert encode_item(BroadcastItem(Broadcast(room=RoomKey("\ud800")))) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_an_envelope_or_an_error_of_ours(data: bytes) -> None:
    for decode in (decode_envelope, decode_content):
        with contextlib.suppress(BusError):
            decode(data)


@given(items, st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_an_envelope_or_an_error_of_ours(item: Item, at: int, byte: int) -> None:
    outgoing = packer()
    put(outgoing, item)
    data = bytearray(outgoing.take(0, bytes_max=1)[0].envelope)
    data[at % len(data)] = byte
    with contextlib.suppress(BusError):
        decode_envelope(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x91" * 5000, msgspec.msgpack.encode(["", 0, 1, 2, []]), msgspec.msgpack.encode(["a", 2, 1, 2, []]),
     msgspec.msgpack.encode(["a", 0, -1, 2, []]), msgspec.msgpack.encode(["a" * 301, 0, 1, 2, []])],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(BusError, match="no envelope"):
        decode_envelope(data)


def test_items_that_only_another_release_knows_are_left_out_and_further_members_are_ignored() -> None:
    items = [["h"], ["zz", 1, {"a": []}], ["m", ["id"], "a new member"], 7]
    assert decode_envelope(msgspec.msgpack.encode(["a", 0, 1, 2, items, "", 0, 0, b"", "new"])).items == [
        Hello(),
        StoredItem(("id",)),
    ]
    assert decode_content(msgspec.msgpack.encode(items)) == [Hello(), StoredItem(("id",))]
