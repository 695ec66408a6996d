"""Conditions of policies that walstream can answer itself: PostgreSQL's parsed tree → ``Formula``.

Names are OIDs here, of functions and operators that come with PostgreSQL, and of functions known by their bodies
(``definitions``). Whatever is not recognised to the last field makes the whole condition one for PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from walstream.policy import formula as f
from walstream.policy import operators as o
from walstream.policy import terms as t
from walstream.policy.claims import CLAIMS, ROLE
from walstream.policy.constants import constant, list_constant
from walstream.policy.nodes import Node, Unreadable, Value, walk

DEFAULT_COLLATION, C_COLLATION, POSIX_COLLATION = 100, 950, 951

_TEXTS: Final = frozenset({t.TEXT, t.VARCHAR})
_PRINTED: Final = frozenset({t.UUID, t.INT2, t.INT4, t.INT8})
_ANY_SUBLINK, _EXPR_SUBLINK, _ARRAY_SUBLINK = 2, 4, 6
_PARAM_SUBLINK: Final = 2
_RTE_FUNCTION: Final = 3

_PLAIN_QUERY: Final = {
    **dict.fromkeys(
        (
            "hasAggs", "hasWindowFuncs", "hasDistinctOn", "hasRecursive", "hasModifyingCTE",
            "hasForUpdate",
        ),
        "false",
    ),
    **dict.fromkeys(
        (
            "utilityStmt", "cteList", "onConflict", "returningList", "groupClause", "groupingSets", "havingQual",
            "windowClause", "distinctClause", "sortClause", "limitOffset", "limitCount", "rowMarks", "setOperations",
        )
    ),
}  # fmt: skip
"""Fields of a SELECT that has neither of these clauses, and their values."""


class Names(NamedTuple):
    """What a tree's numbers stand for.

    ``columns``: (name, type OID) by attribute number. ``functions``: those known by their body, by OID. ``labels``: of
    enums, by OID. ``collations``: OIDs of those that are deterministic.
    """

    columns: Mapping[int, tuple[str, int]]
    functions: Mapping[int, t.Term] = {}
    labels: Mapping[int, str] = {}
    collations: Collection[int] = ()


def called(tree: Value) -> frozenset[int]:
    """OIDs of all functions that a condition calls, by name or as operators. Raises Unreadable."""
    found = set()
    for node, _ in walk(tree):
        for field in ("funcid", "opfuncid"):
            if field in node.fields:
                found.add(node.number(field))
    return frozenset(found - {0})


def enum_types(tree: Value) -> frozenset[int]:
    """OIDs of the types of constants that may be enums'. Raises Unreadable."""
    return frozenset(
        node.number("consttype") for node, _ in walk(tree) if node.kind == "CONST" and node.number("consttype") > 9999
    )


def collations_of(tree: Value) -> frozenset[int]:
    """OIDs of the collations by which a condition compares. Raises Unreadable."""
    return frozenset(node.number("inputcollid") for node, _ in walk(tree) if "inputcollid" in node.fields)


def recognise(tree: Value, names: Names) -> f.Formula | None:
    """The condition's formula; None for what PostgreSQL has to be asked."""
    try:
        return _Reader(names).condition(_a_node(tree))
    except (_Strange, Unreadable):
        return None


class _Strange(Exception):
    """Not a form that is known here."""


def _a_node(value: Value) -> Node:
    if not isinstance(value, Node):
        raise _Strange
    return value


def _need(truth: bool) -> None:
    if not truth:
        raise _Strange


class _Reader:
    def __init__(self, names: Names) -> None:
        self._names = names

    # Conditions

    def condition(self, node: Node) -> f.Formula:
        reader = self._CONDITIONS.get(node.kind)
        if reader is not None:
            return reader(self, node)
        term = self.term(node)
        _need(term.type == t.BOOL)
        return f.Told(term)

    def _constant(self, node: Node) -> f.Formula:
        _need(node.number("consttype") == t.BOOL)
        fixed = constant(node, self._names.labels)
        assert fixed.value is None or isinstance(fixed.value, bool)
        return f.Constant(fixed.value)

    def _bool(self, node: Node) -> f.Formula:
        parts = tuple(self.condition(part) for part in node.nodes("args"))
        match node.get("boolop"):
            case "and":
                return f.All(parts)
            case "or":
                return f.Either(parts)
            case "not":
                _need(len(parts) == 1)
                return f.Negation(parts[0])
        raise _Strange

    def _null_test(self, node: Node) -> f.Formula:
        _need(not node.flag("argisrow"))
        arg = node.node("arg")
        test = node.number("nulltesttype")
        _need(test in (0, 1))
        found: f.Formula
        if arg.kind == "VAR":
            found = f.ColumnIsNull(self._var(arg, 0))
        else:
            found = f.TermIsNull(self.term(arg))
        return found if test == 0 else f.Negation(found)

    def _truth_test(self, node: Node) -> f.Formula:
        # IS_TRUE, IS_NOT_TRUE, IS_FALSE, IS_NOT_FALSE, IS_UNKNOWN, IS_NOT_UNKNOWN
        value, negated = divmod(node.number("booltesttype"), 2)
        _need(0 <= value <= 2)
        test = f.Test(self.condition(node.node("arg")), (True, False, None)[value])
        return f.Negation(test) if negated else test

    def _coalesce(self, node: Node) -> f.Formula:
        """``coalesce(condition, true)``, ``coalesce(condition, false)``."""
        _need(node.number("coalescetype") == t.BOOL)
        args = node.nodes("args")
        _need(len(args) == 2 and args[1].kind == "CONST")
        fallback = constant(args[1], self._names.labels).value
        _need(isinstance(fallback, bool))
        part = self.condition(args[0])
        return f.Negation(f.Test(part, False)) if fallback else f.Test(part, True)

    def _var_alone(self, node: Node) -> f.Formula:
        column = self._var(node, t.BOOL)
        _need(column.type == t.BOOL)
        return f.ColumnHolds(column)

    def _operation(self, node: Node) -> f.Formula:
        _need(not node.flag("opretset"))
        args = node.nodes("args")
        _need(len(args) == 2)
        oid = node.number("opno")
        if oid == o.HAS_KEY:
            return self._has_key(*args)
        if oid in o.MEMBER or oid in o.PATH:
            return self._told(node)
        operator = self._operator(oid, node)
        if operator.op not in ("eq", "neq") and operator.left == t.TEXT:
            _need(node.number("inputcollid") in (_collation(args[0]), _collation(args[1])))
        return self._compared(operator, args[0], args[1])

    def _told(self, node: Node) -> f.Formula:
        term = self.term(node)
        _need(term.type == t.BOOL)
        return f.Told(term)

    def _operator(self, oid: int, node: Node) -> o.Operator:
        """The operator, if it compares as bytes compare. Raises _Strange."""
        _need(oid in o.OPERATORS)
        operator = o.OPERATORS[oid]
        if {operator.left, operator.right} & {t.TEXT, t.NAME, f.BPCHAR}:
            self._check_collation(node)
        return operator

    def _check_collation(self, node: Node) -> None:
        collation = node.number("inputcollid")
        _need(collation in (DEFAULT_COLLATION, C_COLLATION, POSIX_COLLATION) or collation in self._names.collations)

    def _compared(self, operator: o.Operator, left: Node, right: Node) -> f.Formula:
        op = operator.op
        column = self._column(left, operator.left)
        if column is not None:
            value = self._side(right, operator.right)
        else:
            column, op = self._column(right, operator.right), o.SIGNS[op]
            value = self._side(left, operator.left)
            if column is None:
                return f.TermCompare(self._side(right, operator.right), op, value)
        _need(not column.printed or op in ("eq", "neq"))
        return f.ColumnCompare(column, op, value)

    def _distinct(self, node: Node) -> f.Formula:
        args = node.nodes("args")
        _need(len(args) == 2)
        operator = self._operator(node.number("opno"), node)
        _need(operator.op == "eq")
        for (this, side), (other, other_side) in (
            ((args[0], operator.left), (args[1], operator.right)),
            ((args[1], operator.right), (args[0], operator.left)),
        ):
            column = self._column(this, side)
            if column is not None:
                return f.ColumnDistinct(column, self._side(other, other_side))
        return f.TermDistinct(self._side(args[0], operator.left), self._side(args[1], operator.right))

    def _has_key(self, document: Node, key: Node) -> f.Formula:
        found = self.term(document)
        _need(found.type == t.JSONB)
        column = self._column(key, t.TEXT)
        if column is not None:
            return f.ColumnInKeys(column, found)
        return f.TermHasKey(found, self._side(key, t.TEXT))

    def _array_operation(self, node: Node) -> f.Formula:
        """``x = any (list)``, ``x <> all (list)``."""
        args = node.nodes("args")
        _need(len(args) == 2)
        operator = self._operator(node.number("opno"), node)
        _need(operator.op == ("eq" if node.flag("useOr") else "neq"))
        found = self._in(operator, args[0], self._list(args[1], operator.right))
        return found if operator.op == "eq" else f.Negation(found)

    def _in(self, operator: o.Operator, left: Node, values: t.List) -> f.Formula:
        column = self._column(left, operator.left)
        if column is not None:
            return f.ColumnIn(column, values)
        return f.TermIn(self._side(left, operator.left), values)

    def _sub_select(self, node: Node) -> f.Formula:
        if node.number("subLinkType") == _EXPR_SUBLINK:
            return self.condition(_only_target(node.node("subselect")))
        _need(node.number("subLinkType") == _ANY_SUBLINK)
        test = node.node("testexpr")
        _need(test.kind == "OPEXPR" and not test.flag("opretset"))
        operator = self._operator(test.number("opno"), test)
        args = test.nodes("args")
        _need(operator.op == "eq" and len(args) == 2)
        # The other side is the sub-select's column, under a relabelling at most.
        side = args[1]
        while side.kind == "RELABELTYPE":
            side = side.node("arg")
        _need(side.kind == "PARAM" and side.number("paramkind") == _PARAM_SUBLINK and side.number("paramid") == 1)
        values = self._elements(node.node("subselect"))
        _need(_is_side(values.type, operator.right))
        return self._in(operator, args[0], values)

    # Columns

    def _column(self, node: Node, side: int) -> f.Column | None:
        """A column as it stands on one side of an operator; None for what is no column."""
        printed = False
        if node.kind == "COERCEVIAIO" and node.node("arg").kind == "VAR":
            arg = node.node("arg")
            if node.number("resulttype") not in _TEXTS or arg.number("vartype") not in _PRINTED:
                raise _Strange
            printed, node = True, arg
        while node.kind == "RELABELTYPE":
            node = node.node("arg")
        if node.kind != "VAR":
            return None
        return self._var(node, side, printed=printed)

    def _var(self, node: Node, side: int, *, printed: bool = False) -> f.Column:
        _need(node.number("varlevelsup") == 0 and node.number("varno") == 1)
        known = self._names.columns.get(node.number("varattno"))
        if known is None or known[1] != node.number("vartype"):
            raise _Strange
        return f.Column(*known, side, printed)

    # Values made of claims

    def _side(self, node: Node, side: int) -> t.Term:
        """A term that is of the type that an operator takes."""
        term = self.term(node)
        _need(_is_side(term.type, side) or (side == f.ENUM and node.kind == "CONST" and term.type > 9999))
        return term

    def term(self, node: Node) -> t.Term:
        """A value made of claims and constants."""
        reader = self._TERMS.get(node.kind)
        _need(reader is not None)
        assert reader is not None
        return reader(self, node)

    def _fixed(self, node: Node) -> t.Term:
        return constant(node, self._names.labels)

    def _relabelled(self, node: Node) -> t.Term:
        term = self.term(node.node("arg"))
        _need(term.type in _TEXTS and node.number("resulttype") in _TEXTS)
        return term

    def _cast(self, node: Node) -> t.Term:
        """A cast by way of text."""
        term, wanted = self.term(node.node("arg")), node.number("resulttype")
        if wanted in _TEXTS:
            _need(term.type in _PRINTED)
            return t.Print(term)
        if wanted == t.JSONB and term.type == t.JSON:
            return t.Read(term, wanted)
        _need(term.type in _TEXTS and (wanted in t.INPUTS or wanted in (t.JSON, t.JSONB)))
        return t.Read(term, wanted)

    def _call(self, node: Node) -> t.Term:
        oid, args = node.number("funcid"), node.nodes("args")
        _need(not node.flag("funcretset") and not node.flag("funcvariadic"))
        if oid in (o.CURRENT_SETTING, o.CURRENT_SETTING_OK):
            name = self.term(args[0])
            missing_ok = t.Fixed(t.BOOL, False) if oid == o.CURRENT_SETTING else self.term(args[1])
            if isinstance(name, t.Fixed) and isinstance(missing_ok, t.Fixed) and isinstance(name.value, str):
                setting = name.value.lower()
                _need(setting in (CLAIMS, ROLE) or (setting + ".").startswith("request.jwt.claim."))
                return t.Setting(setting, missing_ok.value is True)
            raise _Strange
        if not args:
            _need(oid in self._names.functions)
            term = self._names.functions[oid]
            _need(term.type == node.number("funcresulttype"))
            return term
        _need(len(args) == 1)
        term = self.term(args[0])
        if oid in o.RESIZE:
            return t.Resize(term, o.RESIZE[oid])
        if oid in o.OF_JSONB:
            return t.Read(term, o.OF_JSONB[oid])
        if oid == o.TEXT_OF_BOOL:
            return t.Print(term)
        _need(oid == o.TEXT_OF_NAME and isinstance(term, t.CurrentUser))
        return t.CurrentUser(t.TEXT)

    def _member(self, node: Node) -> t.Term:
        oid, args = node.number("opno"), node.nodes("args")
        _need(len(args) == 2)
        part = self.term(args[0])
        if oid in o.MEMBER:
            key = self.term(args[1])
            if not isinstance(key, t.Fixed) or not isinstance(key.value, str | int):
                raise _Strange
            return t.Member(part, key.value, o.MEMBER[oid])
        _need(oid in o.PATH)
        keys = tuple(fixed.value for fixed in self._fixed_list(args[1]))
        texts = tuple(key for key in keys if isinstance(key, str))
        _need(len(texts) == len(keys))
        return t.Path(part, texts, o.PATH[oid])

    def _first_known(self, node: Node) -> t.Term:
        parts = tuple(self.term(part) for part in node.nodes("args"))
        _need(len({part.type for part in parts}) == 1)
        return t.Coalesce(parts)

    def _nullif(self, node: Node) -> t.Term:
        args = node.nodes("args")
        operator = self._operator(node.number("opno"), node)
        _need(operator == o.Operator("eq", t.TEXT, t.TEXT) and len(args) == 2)
        part, other = self._side(args[0], t.TEXT), self._side(args[1], t.TEXT)
        if not isinstance(other, t.Fixed) or not isinstance(other.value, str):
            raise _Strange
        if isinstance(part, t.Setting) and not other.value:
            return t.Setting(part.name, part.missing_ok, nullif=True)
        return t.NullIf(part, other.value)

    def _current_user(self, node: Node) -> t.Term:
        _need(node.number("op") in o.CURRENT_USER)
        return t.CurrentUser()

    def _scalar_select(self, node: Node) -> t.Term:
        """``(select term)``."""
        _need(node.number("subLinkType") == _EXPR_SUBLINK)
        return self.term(_only_target(node.node("subselect")))

    # Lists made of claims

    def _list(self, node: Node, side: int) -> t.List:
        values = self._any_list(node)
        empty = isinstance(values, t.Listed) and not values.parts
        labels = side == f.ENUM and isinstance(values, t.Listed) and values.type > 9999
        _need(empty or labels or _is_side(values.type, side))
        return values

    def _any_list(self, node: Node) -> t.List:
        while node.kind in ("RELABELTYPE", "ARRAYCOERCEEXPR"):
            if node.kind == "ARRAYCOERCEEXPR":
                _need(node.node("elemexpr").kind == "RELABELTYPE")
                _need(node.node("elemexpr").number("resulttype") in _TEXTS)
            node = node.node("arg")
        match node.kind:
            case "ARRAYEXPR":
                _need(not node.flag("multidims"))
                parts = tuple(self.term(part) for part in node.nodes("elements"))
                _need(all(_is_side(part.type, parts[0].type) for part in parts))
                return t.Listed(parts)
            case "CONST":
                return t.Listed(list_constant(node))
            case "SUBLINK":
                _need(node.number("subLinkType") == _ARRAY_SUBLINK)
                return self._elements(node.node("subselect"))
            case "FUNCEXPR":
                args = node.nodes("args")
                _need(node.number("funcid") == o.STRING_TO_ARRAY and len(args) == 2)
                delimiter = self._side(args[1], t.TEXT)
                if isinstance(delimiter, t.Fixed) and isinstance(delimiter.value, str) and delimiter.value:
                    return t.Parts(self._side(args[0], t.TEXT), delimiter.value)
        raise _Strange

    def _fixed_list(self, node: Node) -> tuple[t.Fixed, ...]:
        values = self._any_list(node)
        parts = values.parts if isinstance(values, t.Listed) else ()
        fixed = tuple(part for part in parts if isinstance(part, t.Fixed))
        _need(isinstance(values, t.Listed) and len(fixed) == len(parts))
        return fixed

    def _elements(self, query: Node) -> t.List:
        """``select term``, ``select elements(term)``, ``select e from elements(term) e``, these with a cast at most."""
        if query.get("rtable") is None and not query.flag("hasTargetSRFs"):
            return t.Listed((self.term(_only_target(query)),))
        target, wanted = _target(query), t.TEXT
        if target.kind == "COERCEVIAIO":
            wanted = target.number("resulttype")
            _need(wanted in t.INPUTS)
            target = target.node("arg")
        tables = query.nodes("rtable")
        sources = query.node("jointree").nodes("fromlist")
        if not tables:
            _need(query.flag("hasTargetSRFs") and not sources)
            return self._elements_call(target, wanted)
        _need(not query.flag("hasTargetSRFs") and len(tables) == len(sources) == 1)
        _need(sources[0].kind == "RANGETBLREF" and sources[0].number("rtindex") == 1)
        table = tables[0]
        _need(table.number("rtekind") == _RTE_FUNCTION and not table.flag("funcordinality"))
        functions = table.nodes("functions")
        _need(len(functions) == 1 and functions[0].number("funccolcount") == 1)
        _need(target.kind == "VAR" and target.number("varlevelsup") == 0)
        _need(target.number("varno") == 1 and target.number("varattno") == 1)
        return self._elements_call(functions[0].node("funcexpr"), wanted)

    def _elements_call(self, node: Node, wanted: int) -> t.Elements:
        _need(node.kind == "FUNCEXPR" and node.number("funcid") in o.ELEMENTS)
        args = node.nodes("args")
        _need(len(args) == 1)
        return t.Elements(self.term(args[0]), wanted)

    _CONDITIONS: Final = {
        "CONST": _constant,
        "BOOLEXPR": _bool,
        "NULLTEST": _null_test,
        "BOOLEANTEST": _truth_test,
        "COALESCEEXPR": _coalesce,
        "VAR": _var_alone,
        "OPEXPR": _operation,
        "DISTINCTEXPR": _distinct,
        "SCALARARRAYOPEXPR": _array_operation,
        "SUBLINK": _sub_select,
    }
    _TERMS: Final = {
        "CONST": _fixed,
        "RELABELTYPE": _relabelled,
        "COERCEVIAIO": _cast,
        "FUNCEXPR": _call,
        "OPEXPR": _member,
        "COALESCEEXPR": _first_known,
        "NULLIFEXPR": _nullif,
        "SQLVALUEFUNCTION": _current_user,
        "SUBLINK": _scalar_select,
    }


def _is_side(found: int, wanted: int) -> bool:
    return found == wanted or (wanted == t.TEXT and found == t.VARCHAR) or (wanted == t.VARCHAR and found == t.TEXT)


def _collation(node: Node) -> int | None:
    """The collation of a column, as far as it is one."""
    while node.kind == "RELABELTYPE":
        node = node.node("arg")
    return node.number("varcollid") if node.kind == "VAR" else None


def _only_target(query: Node) -> Node:
    """What a SELECT without FROM returns as its only row. Raises _Strange."""
    target = _target(query)
    _need(not query.flag("hasTargetSRFs") and query.get("rtable") is None)
    _need(query.node("jointree").get("fromlist") is None)
    return target


def _target(query: Node) -> Node:
    """The only column of a query that has nothing but FROM besides. Raises _Strange."""
    _need(query.kind == "QUERY" and query.number("commandType") == 1)
    _need(all(query.get(field) == value for field, value in _PLAIN_QUERY.items()))
    _need(query.node("jointree").get("quals") is None)
    targets = query.nodes("targetList")
    _need(len(targets) == 1 and not targets[0].flag("resjunk"))
    return targets[0].node("expr")
