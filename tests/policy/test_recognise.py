"""Trees become formulas when every field is understood; integration/policy compares real ones with PostgreSQL."""

from __future__ import annotations

import pytest

from walstream.policy import formula as f
from walstream.policy import terms as t
from walstream.policy.nodes import read
from walstream.policy.recognise import Names, called, collations_of, enum_types, recognise

NAMES = Names(
    columns={2: ("user_id", t.UUID), 3: ("team", t.TEXT), 4: ("public", t.BOOL)},
    functions={16400: t.Read(t.Setting("request.jwt.claim.sub", nullif=True), t.UUID)},
)


def var(number: int, type_oid: int, collation: int = 0, level: int = 0) -> str:
    return (
        f"{{VAR :varno 1 :varattno {number} :vartype {type_oid} :vartypmod -1 :varcollid {collation}"
        f" :varlevelsup {level} :varnosyn 1 :varattnosyn {number} :location 10}}"
    )


USER, TEAM, PUBLIC = var(2, 2950), var(3, 25, 100), var(4, 16)
UID = (
    "{FUNCEXPR :funcid 16400 :funcresulttype 2950 :funcretset false :funcvariadic false :funcformat 0 :funccollid 0"
    " :inputcollid 0 :args <> :location 20}"
)


def const(type_oid: int, data: bytes, length: int) -> str:
    return (
        f"{{CONST :consttype {type_oid} :consttypmod -1 :constcollid 0 :constlen -1 :constbyval false"
        f" :constisnull false :location -1 :constvalue {length} [ {' '.join(map(str, data))} ]}}"
    )


def text(value: str) -> str:
    data = ((len(value) + 4) << 2).to_bytes(4, "little") + value.encode()
    return const(25, data, len(data))


def op(number: int, left: str, right: str, collation: int = 0) -> str:
    return (
        f"{{OPEXPR :opno {number} :opfuncid {number + 1} :opresulttype 16 :opretset false :opcollid 0"
        f" :inputcollid {collation} :args ({left} {right}) :location 30}}"
    )


def boolean(word: str, *args: str) -> str:
    return f"{{BOOLEXPR :boolop {word} :args ({' '.join(args)}) :location 5}}"


def query(target: str, extra: str = "", **changes: str) -> str:
    fields = {
        "commandType": "1", "utilityStmt": "<>", "hasAggs": "false", "hasWindowFuncs": "false",
        "hasTargetSRFs": "false", "hasDistinctOn": "false", "hasRecursive": "false", "hasModifyingCTE": "false",
        "hasForUpdate": "false", "cteList": "<>", "rtable": "<>", "jointree": "{FROMEXPR :fromlist <> :quals <>}",
        "targetList": f"({{TARGETENTRY :expr {target} :resno 1 :resjunk false}})", "onConflict": "<>",
        "returningList": "<>", "groupClause": "<>", "groupingSets": "<>", "havingQual": "<>", "windowClause": "<>",
        "distinctClause": "<>", "sortClause": "<>", "limitOffset": "<>", "limitCount": "<>", "rowMarks": "<>",
        "setOperations": "<>", **changes,
    }  # fmt: skip
    return "{QUERY" + "".join(f" :{name} {value}" for name, value in fields.items()) + extra + "}"


def sub_link(kind: int, subselect: str) -> str:
    return f"{{SUBLINK :subLinkType {kind} :subLinkId 0 :testexpr <> :operName <> :subselect {subselect} :location 1}}"


OWN = f.ColumnCompare(f.Column("user_id", t.UUID, t.UUID), "eq", NAMES.functions[16400])


@pytest.mark.parametrize(
    ("tree", "formula"),
    [
        (op(2972, USER, UID), OWN),
        (op(2972, UID, USER), OWN),
        (op(2972, sub_link(4, query(UID)), USER), OWN),
        (op(2972, sub_link(4, query(UID, " :newField 7")), USER), OWN),
        (PUBLIC, f.ColumnHolds(f.Column("public", t.BOOL, t.BOOL))),
        (boolean("not", boolean("or", PUBLIC, op(2972, USER, UID))),
         f.Negation(f.Either((f.ColumnHolds(f.Column("public", t.BOOL, t.BOOL)), OWN)))),
        (op(98, TEAM, text("a"), 100),
         f.ColumnCompare(f.Column("team", t.TEXT, t.TEXT), "eq", t.Fixed(t.TEXT, "a"))),
        (op(664, text("a"), TEAM, 100),
         f.ColumnCompare(f.Column("team", t.TEXT, t.TEXT), "gt", t.Fixed(t.TEXT, "a"))),
        (const(16, b"\1" + b"\0" * 7, 1), f.Constant(True)),
    ],
)  # fmt: skip
def test_understood(tree: str, formula: f.Formula) -> None:
    assert recognise(read(tree), NAMES) == formula


@pytest.mark.parametrize(
    "tree",
    [
        op(2972, USER, UID.replace("16400", "16401")),
        op(2972, USER, UID.replace("funcretset false", "funcretset true")),
        op(2972, USER, UID.replace("funcresulttype 2950", "funcresulttype 25")),
        op(2973000, USER, UID),
        op(2972, USER, UID).replace(" :opretset false", ""),
        op(2972, var(2, 25), UID),
        op(2972, var(9, 2950), UID),
        op(2972, var(2, 2950, level=1), UID),
        op(2972, USER, USER),
        op(2972, USER, text("a")),
        op(98, TEAM, text("a"), 12345),
        op(664, TEAM, text("a"), 950),
        op(98, "{COLLATEEXPR :arg " + TEAM + " :collOid 950 :location 1}", text("a"), 950),
        op(2972, sub_link(4, query(UID, limitCount=const(20, b"\0" * 8, 8))), USER),
        op(2972, sub_link(4, query(UID, jointree="{FROMEXPR :fromlist ({RANGETBLREF :rtindex 1}) :quals <>}")), USER),
        op(2972, sub_link(4, query(UID, rtable="({RANGETBLENTRY :rtekind 0})")), USER),
        op(2972, sub_link(4, query(UID).replace(" :havingQual <>", "")), USER),
        sub_link(0, query(UID)),
        boolean("xor", PUBLIC, PUBLIC),
        "{CASEEXPR :casetype 16 :args <>}",
        "<>",
        "(1 2)",
        UID,
    ],
)
def test_not_understood(tree: str) -> None:
    assert recognise(read(tree), NAMES) is None


def test_collations_that_are_known_to_be_exact_compare_bytes() -> None:
    tree = read(op(98, TEAM, text("a"), 12345))
    assert recognise(tree, NAMES._replace(collations={12345})) is not None
    assert collations_of(tree) == {12345}


def test_what_a_tree_calls() -> None:
    tree = read(boolean("and", op(2972, USER, UID), op(3516, var(7, 70000), const(70000, b"\0" * 8, 4))))
    assert called(tree) == {16400, 2973, 3517}
    assert enum_types(tree) == {70000}
