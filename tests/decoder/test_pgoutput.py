"""What only pgoutput does: relations that the server tells, and messages in binary."""

from __future__ import annotations

import struct

import pytest

from tests.decoder.messages import PgoutputSpeaker, Reader, Table, change
from walstream.decoder.pgoutput import Pgoutput
from walstream.errors import DecodeError
from walstream.model import Begin, Catalog, ReplicaIdentity

T = Table((("id", 20), ("body", 25)), key=("id",))
ROW = {"id": "1", "body": "text"}


def test_the_catalog_is_asked_when_a_relation_is_told_again() -> None:
    says, reader = PgoutputSpeaker(), Reader("pgoutput", T)
    before = change(reader.read(says.row("I", T, ROW))[0]).relation
    assert reader.asked == 1
    reader.read(says.row("I", T, ROW))
    assert reader.asked == 0
    says.told.clear()
    after = change(reader.read(says.row("I", T, ROW))[0]).relation
    assert reader.asked == 1
    assert after is before


def test_a_partition_that_is_attached_finds_its_root() -> None:
    says, reader = PgoutputSpeaker(), Reader("pgoutput", T)
    reader.read(says.row("I", T, ROW))
    reader.alter(T._replace(root=("public", "root"), order=("body", "id")))
    says.told.clear()
    (record,) = reader.read(says.row("I", T, ROW))
    assert (change(record).relation.name, change(record).relation.leaf) == ("root", ("public", "t"))
    assert change(record).new == (b'"text"', b"1")


def test_the_replica_identity_is_the_one_that_was_told() -> None:
    says, reader = PgoutputSpeaker(), Reader("pgoutput", T)
    (record,) = reader.read(says.row("I", T._replace(identity=ReplicaIdentity.INDEX), ROW))
    assert change(record).relation.replica_identity is ReplicaIdentity.INDEX


def test_a_truncate_names_all_that_is_missing() -> None:
    others = [T._replace(name=f"t{number}", oid=number) for number in range(1, 9)]
    says, reader = PgoutputSpeaker(), Reader("pgoutput", *others)
    reader.catalog.types.clear()
    (records,) = reader.read(says.truncate(*others))
    assert isinstance(records, tuple)
    assert [one.ordinal for one in records] == list(range(8))
    assert reader.asked <= 2


def test_a_system_table_has_its_schema() -> None:
    table = T._replace(schema="pg_catalog")
    (record,) = Reader("pgoutput", table).read(PgoutputSpeaker().row("I", table, ROW))
    assert change(record).relation.schema == "pg_catalog"


def test_types_and_origins_are_of_no_use() -> None:
    reader = Reader("pgoutput", T)
    assert reader.one(b"Y" + struct.pack("!I", 5) + b"public\0mood\0") is None
    assert reader.one(b"O" + struct.pack("!Q", 5) + b"origin\0") is None


def test_names_of_publications_are_quoted() -> None:
    decoder = Pgoutput(Catalog(), wanted=lambda *_: True, publication_names=('a"b', "c,d"))
    assert decoder.options() == {"proto_version": "1", "publication_names": '"a""b","c,d"', "messages": "true"}


DESCRIBED = PgoutputSpeaker().describe(T)[0]
INSERT = PgoutputSpeaker().row("I", T, ROW)[1]
DELETE = PgoutputSpeaker().row("D", T, None, {"id": "1"})[1]
UPDATE = PgoutputSpeaker().row("U", T, ROW, {"id": "2"})[1]
HEAD = struct.pack("!I", T.oid)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"Z",
        b"B",
        struct.pack("!cQqI", b"B", 1, 2**63 - 1, 7),
        struct.pack("!cQqI", b"B", 1, -(2**63), 7),
        b"C\0",
        DESCRIBED[:-1],
        DESCRIBED + b"\0",
        DESCRIBED.replace(b"td", b"tx").replace(b"\0d\0", b"\0x\0"),
        DESCRIBED.replace(b"body", b"b\xc3dy"),
        INSERT + b"\0",
        INSERT[:-1],
        INSERT.replace(b"N", b"O", 1),
        b"I" + struct.pack("!I", 4711) + INSERT[5:],
        b"I" + HEAD + b"N" + struct.pack("!H", 1) + b"n",
        b"I" + HEAD + b"N" + struct.pack("!H", 2) + b"nx",
        b"I" + HEAD + b"N" + struct.pack("!H", 2) + b"nt\xff\xff\xff\xff",
        b"I" + HEAD + b"N" + struct.pack("!H", 2) + b"t\0\0\0\1xn",
        UPDATE[:-1],
        UPDATE + b"\0",
        b"U" + DELETE[1:],
        DELETE + b"\0",
        b"D" + INSERT[1:],
        struct.pack("!cIB", b"T", 1, 0),
        struct.pack("!cIB", b"T", 2**32 - 1, 0),
        struct.pack("!cIBI", b"T", 1, 0, 4711),
        b"M\0" + bytes(8) + b"walstream\0" + struct.pack("!I", 2) + b"x",
        b"M\0" + bytes(8) + b"walstream",
    ],
)
def test_broken_messages_are_refused(payload: bytes) -> None:
    reader = Reader("pgoutput", T)
    reader.read([DESCRIBED, INSERT])
    with pytest.raises(DecodeError):
        reader.one(payload)
    assert change(reader.one(INSERT)).ordinal == 1


def test_the_clock_of_the_server_begins_in_2000() -> None:
    assert Reader("pgoutput").one(struct.pack("!cQqI", b"B", 1, 0, 7)) == Begin(7, 946_684_800_000_000, 1)
