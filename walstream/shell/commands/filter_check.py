"""Whether a row filter fits a table: its columns exist, its literals are values, its operators can be repeated.

The language is ``capture.row_filter``, the judgement ``predicate``; here the facts for it are fetched from PostgreSQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walstream.capture import parse_row_filter, quote_table
from walstream.errors import FilterError, NotFound
from walstream.model import Catalog, Relation
from walstream.predicate import columns_of, compile, literals_needed  # noqa: A004 - the room's one verb
from walstream.shell.database import catalog as catalog_facts
from walstream.shell.database import join_facts

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values


def check(connection: Connection, text: str, schema: str, name: str) -> frozenset[str]:
    """Columns of the table that the filter reads.

    ``connection`` is in autocommit and in no transaction: a literal that PostgreSQL refuses would end it. Raises
    FilterError, naming the table and the column or literal; NotFound where there is no such table; psycopg2.Error.
    """
    expression = parse_row_filter(text)
    relation, facts = load(connection, schema, name)
    try:
        needed = literals_needed(expression, relation, facts)
        literals = join_facts.cast_literals(connection, needed, facts)
        compile(expression, relation, facts, literals)
    except FilterError as error:
        raise FilterError(
            f"the filter does not fit {quote_table(schema, name)}: {error.message}", repair=error.repair
        ) from error
    return columns_of(expression)


def load(connection: Connection, schema: str, name: str) -> tuple[Relation, Catalog]:
    """The table as filters see it, and a catalog that knows it with all its types. Raises NotFound, psycopg2.Error."""
    found = catalog_facts.load_relations(connection, [(schema, name)])
    info = found[schema, name]
    if info is None:
        raise NotFound(f"there is no table {quote_table(schema, name)}")
    facts = Catalog()
    facts.load(found, catalog_facts.load_types(connection, {column.type_oid for column in info.columns}))
    return Relation(schema, name, info.columns, info.primary_key, info.replica_identity, oid=info.oid), facts
