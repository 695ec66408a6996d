"""Pages of a snapshot: every row once and in order, with counts that add up."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from walstream.model import Column, Relation
from walstream.protocol.snapshot import PAGE_BYTES, Pages

TABLE = Relation("public", 'odd "name"', (Column("id", 23, "int4"), Column("v", 25, "text")), ("id",))
KEYLESS = Relation("public", "keyless", TABLE.columns)


def paged(pages: Pages, *rows: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    found = [page for row in rows for page in pages.add(row)]
    return [json.loads(page) for page in [*found, pages.end()]]


sizes = st.lists(st.sampled_from((0, 1, 500, 1001, 30_000, 140_000)), max_size=40)


@given(sizes, st.integers(1, 9), st.sampled_from((1000, 1 << 20)), st.sampled_from((TABLE, KEYLESS)))
def test_pages_are_the_rows(values: list[int], rows_max: int, record_bytes: int, relation: Relation) -> None:
    pages = Pages(relation, None, [7, 9], estimate=None, rows_max=rows_max, record_bytes=record_bytes)
    rows = [(b"%d" % at, b'"%b"' % (b"x" * size)) for at, size in enumerate(values)]
    found = [payload["data"] for payload in paged(pages, *rows)]
    shown = [row for data in found for row in data["rows"]]
    assert [row["id"] for row in shown] == list(range(len(values)))
    total = 0
    for number, data in enumerate(found, start=1):
        total += len(data["rows"])
        assert (data["page"], data["count"], data["total"]) == (number, len(data["rows"]), total)
        assert data["count"] <= rows_max
        assert data["last"] == (number == len(found))
        assert data["count"] == 1 or sum(len(json.dumps(row)) for row in data["rows"]) < PAGE_BYTES + 50 * rows_max
        assert data["rows"] or data["last"]
        is_cut = [len(row.get("v", "")) < values[row["id"]] for row in data["rows"]]
        assert is_cut == ([data["errors"] is not None] if data["errors"] else [False] * len(is_cut))
    for row, size in zip(shown, values, strict=True):
        assert row.get("v") == ("x" * size if size + 20 < record_bytes else None)


def test_a_page_says_whose_it_is() -> None:
    pages = Pages(TABLE, ("v",), [7, 9], estimate=12, rows_max=5)
    assert paged(pages, (b"1", b'"a"')) == [
        {
            "ids": [7, 9],
            "data": {
                "schema": "public", "table": 'odd "name"',
                "columns": [{"name": "id", "type": "int4"}, {"name": "v", "type": "text"}],
                "rows": [{"id": 1, "v": "a"}], "errors": None,
                "page": 1, "count": 1, "total": 1, "estimate": 12, "last": True,
            },
        }
    ]  # fmt: skip


def test_an_empty_table_has_one_page() -> None:
    (payload,) = paged(Pages(TABLE, (), [1], estimate=None, rows_max=1))
    assert payload["data"]["columns"] == [{"name": "id", "type": "int4"}]
    assert (payload["data"]["rows"], payload["data"]["last"]) == ([], True)
