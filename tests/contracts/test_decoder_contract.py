"""What every decoder keeps: transactions, missing values, altered tables, and what is asked of the catalog."""

from __future__ import annotations

import pytest

from tests.decoder.messages import Reader, Table, change, speaker
from walstream.decoder import DECODERS, MESSAGE_PREFIX, make
from walstream.errors import DecodeError
from walstream.model import Begin, Catalog, Change, Commit, Message, Operation, ReplicaIdentity, TypeInfo

PLUGINS = pytest.mark.parametrize("plugin", DECODERS)

T = Table((("id", 20), ("body", 25), ("n", 23)), key=("id",))
FULL = T._replace(identity=ReplicaIdentity.FULL)
ROW = {"id": "1", "body": "text", "n": None}


@PLUGINS
def test_a_transaction_is_begin_changes_commit(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    payloads = [
        says.begin(xid=4_000_000_000),
        *says.row("I", T, ROW),
        *says.row("U", T, {"id": "2", "body": "x", "n": "3"}, {"id": "1"}),
        *says.row("U", T, {"id": "2", "body": "y", "n": "3"}, {"id": "2"}),
        *says.row("D", T, None, {"id": "2"}),
        says.commit(0x1_0000_0010),
    ]
    begin, insert, moved, update, delete, commit = reader.read(payloads)
    assert begin == Begin(4_000_000_000, 1_795_404_998_358_214, 0x6244C778)
    assert commit == Commit(0x1_0000_0010)
    assert (change(insert).new, change(insert).old) == ((b"1", b'"text"', b"null"), None)
    assert (change(moved).new, change(moved).old) == ((b"2", b'"x"', b"3"), (b"1", None, None))
    assert (change(update).new, change(update).old) == ((b"2", b'"y"', b"3"), (b"2", None, None))
    assert (change(delete).new, change(delete).old) == (None, (b"2", None, None))
    changes = [change(record) for record in (insert, moved, update, delete)]
    assert [one.operation.value for one in changes] == ["INSERT", "UPDATE", "UPDATE", "DELETE"]
    assert [one.ordinal for one in changes] == [0, 1, 2, 3]
    assert {one.lsn for one in changes} == {5}
    assert all(one.relation is changes[0].relation for one in changes)


@PLUGINS
def test_ordinals_begin_anew_with_each_transaction(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    for _ in range(3):
        records = reader.read([says.begin(), *says.row("I", T, ROW), *says.row("I", T, ROW), says.commit()])
        assert [record.ordinal for record in records if isinstance(record, Change)] == [0, 1]


@PLUGINS
def test_an_unchanged_toasted_value_has_no_cell(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    (record,) = reader.read(says.row("U", T, {"id": "1", "n": None}, {"id": "1"}))
    assert change(record).new == (b"1", None, b"null")
    assert change(record).old == (b"1", None, None)


@PLUGINS
def test_an_unchanged_toasted_value_is_taken_from_a_full_old_row(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, FULL)
    (record,) = reader.read(says.row("U", FULL, {"id": "1", "n": "2"}, {"id": "1", "body": "long", "n": None}))
    assert change(record).new == (b"1", b'"long"', b"2")
    assert change(record).old == (b"1", b'"long"', b"null")


@PLUGINS
def test_a_toasted_key_is_taken_from_the_old_key(plugin: str) -> None:
    table = T._replace(key=("body",))
    says, reader = speaker(plugin), Reader(plugin, table)
    (record,) = reader.read(says.row("U", table, {"id": "1", "n": "2"}, {"body": "long key"}))
    assert change(record).new == (b"1", b'"long key"', b"2")
    assert change(record).old == (None, b'"long key"', None)


@PLUGINS
def test_a_truncate_is_a_change_of_each_table(plugin: str) -> None:
    other = T._replace(name="other", oid=99)
    says, reader = speaker(plugin), Reader(plugin, T, other)
    flat: list[Change] = []
    for record in reader.read([says.begin(), *says.truncate(T, other), *says.row("I", T, ROW)]):
        if isinstance(record, tuple):
            flat += record
        elif isinstance(record, Change):
            flat.append(record)
    assert [(one.relation.name, one.operation, one.ordinal) for one in flat] == [
        ("t", Operation.TRUNCATE, 0), ("other", Operation.TRUNCATE, 1), ("t", Operation.INSERT, 2)
    ]  # fmt: skip
    assert flat[0].new is flat[0].old is None
    assert flat[0].relation is flat[2].relation


@PLUGINS
@pytest.mark.parametrize("transactional", [True, False])
def test_own_logical_messages_are_read(plugin: str, transactional: bool) -> None:
    says, reader = speaker(plugin), Reader(plugin)
    assert reader.read([says.message(MESSAGE_PREFIX, 'a "b" é', transactional)]) == [
        Message(MESSAGE_PREFIX, 'a "b" é'.encode(), transactional, 0x6244C778)
    ]
    assert reader.read([says.message("someone's", "x", transactional)]) == []


@PLUGINS
def test_a_partition_speaks_under_its_roots_name_and_order(plugin: str) -> None:
    columns = (("n", 23), ("id", 20))
    leaf = Table(columns, ("id",), schema="parts", name="t_2026", root=("public", "t"), order=("id", "gone", "n"))
    asked: set[tuple[str, str]] = set()

    def wanted(schema: str, name: str) -> bool:
        asked.add((schema, name))
        return True

    says = speaker(plugin)
    reader = Reader(plugin, leaf, wanted=wanted)
    for _ in range(3):
        (record,) = reader.read(says.row("I", leaf, {"id": "1", "n": "2"}))
        relation = change(record).relation
        assert (relation.schema, relation.name, relation.leaf) == ("public", "t", ("parts", "t_2026"))
        assert [column.name for column in relation.columns] == ["id", "n"]
        assert change(record).new == (b"1", b"2")
    (record,) = reader.read(says.row("U", leaf, {"id": "1", "n": "3"}, {"id": "1"}))
    assert (change(record).new, change(record).old) == ((b"1", b"3"), (b"1", None))
    (record,) = reader.read(says.row("D", leaf, None, {"id": "1"}))
    assert change(record).old == (b"1", None)
    assert asked == {("public", "t")}


@PLUGINS
def test_a_table_that_nobody_wants_is_counted(plugin: str) -> None:
    """What is read again under another plan has the same positions."""
    other = T._replace(name="other", oid=99)
    answers = {"t": False, "other": True}
    says = speaker(plugin)
    reader = Reader(plugin, T, other, wanted=lambda _schema, name: answers[name])
    rows = [
        *says.row("I", T, ROW), *says.row("I", T, ROW), *says.truncate(T, other), *says.row("D", T, None, {"id": "1"}),
        *says.row("U", T, ROW, {"id": "1"}), *says.row("I", other, ROW),
    ]  # fmt: skip
    found: list[Change] = []
    for record in reader.read(rows):
        found += record if isinstance(record, tuple) else [change(record)]
    assert [(each.relation.name, each.ordinal) for each in found] == [("other", 3), ("other", 6)]
    answers["t"] = True
    reader.decoder.replan()
    (record,) = reader.read(says.row("I", T, ROW))
    assert change(record).ordinal == 7


@PLUGINS
def test_a_relation_is_the_same_object_until_it_changes(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    seen = set()
    for _ in range(4):
        for row in (says.row("I", T, ROW), says.row("U", T, ROW, {"id": "1"}), says.row("D", T, None, {"id": "1"})):
            seen |= {id(change(record).relation) for record in reader.read(row)}
        reader.decoder.replan()
    assert len(seen) == 1


@PLUGINS
def test_what_is_missing_is_asked_for_and_nothing_is_counted(plugin: str) -> None:
    table = T._replace(columns=(("id", 20), ("p", 20003), ("d", 20007)))
    says, reader = speaker(plugin), Reader(plugin, table)
    reader.catalog.relations.clear()
    reader.catalog.types.clear()
    payloads = says.row("I", table, {"id": "1", "p": '{"(1,a)"}', "d": "{1,2}"})
    for ordinal in range(3):
        (record,) = reader.read(payloads)
        assert change(record).new == (b"1", b'[{"n":1,"t":"a"}]', b"[1,2]")
        assert change(record).ordinal == ordinal


@PLUGINS
def test_a_dropped_table_is_still_read(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin)
    reader.catalog.load(relations={("public", "t"): None})
    rows = [
        *says.row("I", T, ROW),
        *says.row("U", T, {"id": "1", "n": None}, {"id": "1"}),
        *says.row("D", T, None, {"id": "1"}),
    ]
    insert, update, delete = map(change, reader.read(rows))
    assert {one.relation.name for one in (insert, update, delete)} == {"t"}
    assert insert.new == (b"1", b'"text"', b"null")
    assert update.new == (b"1", None, b"null")
    assert delete.old == (b"1", None, None)


@PLUGINS
def test_an_altered_table_is_asked_for_again(plugin: str) -> None:
    after = Table((("id", 20), ("n", 20), ("extra", 25)), key=("n",), identity=ReplicaIdentity.FULL)
    says, reader = speaker(plugin), Reader(plugin, T)
    for _ in range(3):
        before = change(reader.read(says.row("I", T, ROW))[0]).relation
    reader.alter(after)
    new = {"id": "1", "n": "2", "extra": "x"}
    for row in (says.row("U", after, new, new), says.row("I", after, new), says.row("D", after, None, new)):
        (record,) = reader.read(row)
        relation = change(record).relation
        assert [column.name for column in relation.columns] == ["id", "n", "extra"]
        assert relation is not before
        assert relation.primary_key == ("n",)
        assert relation.replica_identity is ReplicaIdentity.FULL


@PLUGINS
@pytest.mark.parametrize("identity", [ReplicaIdentity.FULL, ReplicaIdentity.DEFAULT])
def test_another_replica_identity_is_noticed(plugin: str, identity: ReplicaIdentity) -> None:
    after = T._replace(identity=identity)
    before = T._replace(identity={FULL.identity: T.identity, T.identity: FULL.identity}[identity])
    says, reader = speaker(plugin), Reader(plugin, before)
    for _ in range(3):
        reader.read(says.row("U", before, ROW, ROW if before.identity is ReplicaIdentity.FULL else {"id": "1"}))
    reader.alter(after)
    old = ROW if identity is ReplicaIdentity.FULL else {"id": "1"}
    for _ in range(3):
        (record,) = reader.read(says.row("U", after, ROW, old))
        assert change(record).relation.replica_identity is identity
        assert change(record).old == ((b"1", b'"text"', b"null") if old is ROW else (b"1", None, None))


@PLUGINS
@pytest.mark.parametrize("action", ["U", "I"])
def test_a_dropped_column_is_no_unchanged_one(plugin: str, action: str) -> None:
    after = T._replace(columns=(("id", 20), ("n", 23)))
    says, reader = speaker(plugin), Reader(plugin, T)
    reader.read(says.row("I", T, ROW))
    reader.alter(after)
    (record,) = reader.read(says.row(action, after, {"id": "1", "n": "2"}, {"id": "1"} if action == "U" else None))
    assert change(record).new == (b"1", b"2")


@PLUGINS
def test_an_altered_composite_is_asked_for_once(plugin: str) -> None:
    table = Table((("p", 20002),))
    says, reader = speaker(plugin), Reader(plugin, table)
    reader.read(says.row("I", table, {"p": "(1,a)"}))
    fields = (("n", 23), ("t", 25), ("z", 16))
    reader.truth.load(types={20002: TypeInfo(20002, "pair", kind="c", category="C", fields=fields)})
    (record,) = reader.read(says.row("I", table, {"p": "(2,b,t)"}))
    assert change(record).new == (b'{"n":2,"t":"b","z":true}',)
    # Rows from before are given as texts, and nobody is asked again and again.
    for asked in (1, 0, 0):
        (record,) = reader.read(says.row("I", table, {"p": "(1,a)"}))
        assert (change(record).new, reader.asked) == ((b'"(1,a)"',), asked)


@PLUGINS
def test_a_message_that_is_broken_counts_nothing(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    payloads = says.row("I", T, ROW)
    reader.read(payloads)
    with pytest.raises(DecodeError):
        reader.one(payloads[-1][:-1])
    (record,) = reader.read(payloads[-1:])
    assert change(record).ordinal == 1


@PLUGINS
def test_reset_forgets_the_transaction(plugin: str) -> None:
    says, reader = speaker(plugin), Reader(plugin, T)
    reader.read(says.row("I", T, ROW))
    reader.decoder.reset()
    (record,) = reader.read(speaker(plugin).row("I", T, ROW))
    assert change(record).ordinal == 0


@PLUGINS
def test_options_are_texts(plugin: str) -> None:
    decoder = make(plugin, Catalog(), wanted=lambda *_: True, publication_names=('a"b', "c"), filter_tables="a.b")
    assert all(isinstance(value, str) for value in decoder.options().values())


def test_an_unknown_plugin_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        make("test_decoding", Catalog(), wanted=lambda *_: True)
