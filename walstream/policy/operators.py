"""Operators and functions of PostgreSQL itself that policies are understood by, as OIDs: they never change.

From pg_operator.dat, pg_proc.dat and primnodes.h. What is made of them is told in ``recognise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from walstream.policy import formula as f
from walstream.policy import terms as t

SIGNS: Final[Mapping[t.Comparison, t.Comparison]] = {
    "eq": "eq", "neq": "neq", "lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"
}  # fmt: skip
"""The same comparison with its sides exchanged."""

ORDER: Final[tuple[t.Comparison, ...]] = ("eq", "neq", "lt", "lte", "gt", "gte")


class Operator(NamedTuple):
    """A comparison and the types of its sides."""

    op: t.Comparison
    left: int
    right: int


# =, <>, <, <=, >, >= by the types of both sides (pg_operator.dat).
OPERATORS: Final[Mapping[int, Operator]] = {
    oid: Operator(op, left, right)
    for left, right, oids in (
        (t.BOOL, t.BOOL, (91, 85, 58, 1694, 59, 1695)),
        (t.INT2, t.INT2, (94, 519, 95, 522, 520, 524)),
        (t.INT2, t.INT4, (532, 538, 534, 540, 536, 542)),
        (t.INT2, t.INT8, (1862, 1863, 1864, 1866, 1865, 1867)),
        (t.INT4, t.INT2, (533, 539, 535, 541, 537, 543)),
        (t.INT4, t.INT4, (96, 518, 97, 523, 521, 525)),
        (t.INT4, t.INT8, (15, 36, 37, 80, 76, 82)),
        (t.INT8, t.INT2, (1868, 1869, 1870, 1872, 1871, 1873)),
        (t.INT8, t.INT4, (416, 417, 418, 420, 419, 430)),
        (t.INT8, t.INT8, (410, 411, 412, 414, 413, 415)),
        (t.TEXT, t.TEXT, (98, 531, 664, 665, 666, 667)),
        (t.NAME, t.NAME, (93, 643)),
        (t.NAME, t.TEXT, (254, 259)),
        (t.TEXT, t.NAME, (260, 265)),
        (f.BPCHAR, f.BPCHAR, (1054, 1057)),
        (t.UUID, t.UUID, (2972, 2973, 2974, 2976, 2975, 2977)),
        (f.ENUM, f.ENUM, (3516, 3517, 3518, 3520, 3519, 3521)),
    )
    for op, oid in zip(ORDER, oids, strict=False)
}

MEMBER: Final = {3962: False, 3964: False, 3211: False, 3212: False, 3963: True, 3965: True, 3477: True, 3481: True}
"""-> and ->> of json and jsonb: whether the result is text."""

PATH: Final = {3213: False, 3206: True}
"""#> and #>> of jsonb."""

HAS_KEY: Final = 3247
CURRENT_SETTING, CURRENT_SETTING_OK = 2077, 3294
TEXT_OF_NAME, TEXT_OF_BOOL = 406, 2971
STRING_TO_ARRAY: Final = 394
ELEMENTS: Final = frozenset({3465, 3969})
"""jsonb_array_elements_text, json_array_elements_text."""

RESIZE: Final = {714: t.INT2, 314: t.INT2, 480: t.INT4, 313: t.INT4, 481: t.INT8, 754: t.INT8}
OF_JSONB: Final = {3556: t.BOOL, 3450: t.INT2, 3451: t.INT4, 3452: t.INT8}

CURRENT_USER: Final = frozenset({9, 10, 11})  # CURRENT_ROLE, CURRENT_USER, USER of SQLValueFunctionOp
