"""Row-level security of captured tables: what of their policies cannot be judged on rows of the WAL, and what was not.

How rows are judged is in ``shell.delivery.judge``; rights to whole tables are judged in ``preflight_tables``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.capture import Plan, quote_table
from walstream.decoder.values import NEVER_TOASTED
from walstream.model import Catalog, Operation, Relation, RelationInfo, ReplicaIdentity
from walstream.policy import Ask, Policy, Viewer, guard
from walstream.shell.database import roles, tables
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.counts import NODE_SECONDS
from walstream.shell.database.judgement import Form, Session
from walstream.shell.database.policies import Protections, load_protections
from walstream.shell.database.reports import Finding
from walstream.shell.database.tables import Table

_LONG_VALUES = """
select c.oid::int8
  from pg_catalog.pg_class c
 where c.oid = any(%(oids)s::oid[])
   and c.reltoastrelid <> 0
   and pg_catalog.pg_relation_size(c.reltoastrelid) > 0
"""
# Counts of daemons that are there. Whoever may write the table may write anything: what is no count is left out.
_IN_DOUBT = """
select d ->> 'table', d ->> 'reason', sum((d -> 'rows')::numeric)::text
  from {nodes} n
 cross join lateral pg_catalog.jsonb_path_query(n.status, '$.health.doubts[*] ? (@.rows.type() == "number")') d
 where n.last_seen_at > now() - make_interval(secs => %(seconds)s)
 group by 1, 2
 order by 1, 2
"""

_FULL: Final = "alter table {} replica identity full"
_OTHER_COLUMNS: Final = "write the policy over columns whose values the WAL tells (docs/discussion/row-security.md)"
_REPAIRS: Final[Mapping[str, str]] = {
    "unchanged_toast": _FULL,
    "key_only_old_row": _FULL,
    "absent_column": "write the policy without generated columns, or set WALSTREAM_DECODER=wal2json",
    "policy_error": "the daemon's log has PostgreSQL's message and its repair: policy.failed",
}


def judge_policies(connection: Connection, plan: Plan, captured: Sequence[Table]) -> Iterator[Finding]:
    """Policies that cannot be judged for some rows, as far as the catalog tells. Raises psycopg2.Error."""
    guarded = {(table.schema, table.name): table for table in captured if table.row_security}
    if not guarded:
        return
    policies: dict[tuple[str, str], dict[str, Policy]] = {}
    protections = load_protections(connection, roles.CLIENT_ROLES, list(guarded))
    for (_, schema, name), protection in protections.items():
        policies.setdefault((schema, name), {}).update({policy.name: policy for policy in protection.policies})
    complaints = _complaints(connection, protections)
    for key, table in guarded.items():
        found = policies.get(key, {}).values()
        row = plan.row_for(*key)
        for role, (error, repair) in complaints.get(key, {}).items():
            cause = f"policies cannot be asked as {role}, which gets none of its changes: {error}"
            yield Finding("policy_error", "warning", table.pattern, cause, repair or "alter the policy")
        yield from _system_columns(table, found)
        if row is not None:
            yield from _missing_values(connection, table, found, row.events)


def _complaints(connection: Connection, protections: Protections) -> dict[tuple[str, str], dict[str, tuple[str, str]]]:
    """By table and role what PostgreSQL says where its policies cannot be asked whatever the row."""
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    infos = load_relations(connection, {(schema, name) for _, schema, name in protections})
    catalog = Catalog()
    catalog.load(types=load_types(connection, {c.type_oid for info in infos.values() if info for c in info.columns}))
    session = Session(connection)
    with connection.cursor() as cursor:
        acting = {role for role in roles.CLIENT_ROLES if roles.may_act_as(cursor, role)}
    for (role, schema, name), protection in protections.items():
        info = infos[schema, name]
        if info is None or role not in acting:
            continue
        viewer = Viewer(role, "{}")
        asked = guard(protection, viewer, Relation(schema, name, info.columns), catalog)
        if isinstance(asked, Ask) and not asked.problem:
            error, repair = session.complaint(viewer, Form(asked, [False] * len(asked.columns)))
            if error:
                found.setdefault((schema, name), {})[role] = (error, repair)
    with connection.cursor() as cursor:
        cursor.execute("reset statement_timeout; reset lock_timeout; reset jit")
    return found


def _system_columns(table: Table, policies: Collection[Policy]) -> Iterator[Finding]:
    for policy in policies:
        if policy.problem:
            cause = f"the policy {policy.name} looks at the whole row, or at a system column: nobody gets its changes"
            yield Finding("policy_columns", "warning", table.pattern, cause, "write the policy over columns by name")


def _missing_values(
    connection: Connection, table: Table, policies: Collection[Policy], events: Collection[Operation]
) -> Iterator[Finding]:
    """Columns of policies that old rows do not have, or that an UPDATE may leave out."""
    looked_at = {name for policy in policies for name, _ in policy.columns}
    leaves = {(leaf.schema, leaf.name): leaf for leaf in tables.leaves(connection, table)}
    infos = [info for info in load_relations(connection, list(leaves)).values() if info is not None]
    with_long_values = _with_long_values(connection, [info.oid for info in infos])
    gone: dict[str, None] = {}
    long: dict[str, None] = {}
    partial = []
    for info in infos:
        unknown = looked_at - set(info.identity_columns)
        if info.replica_identity is ReplicaIdentity.FULL or not unknown:
            continue
        partial.append(leaves[info.schema, info.name].pattern)
        gone |= dict.fromkeys(sorted(unknown))
        if info.oid in with_long_values:
            long |= dict.fromkeys(sorted(unknown & _toastable(info)))
    repair = "; ".join(map(_FULL.format, partial))
    if gone and Operation.DELETE in events:
        cause = f"DELETE reaches nobody: policies look at {', '.join(gone)}, which the WAL has not of a deleted row"
        yield Finding("policy_on_delete", "warning", table.pattern, cause, repair)
    if long and Operation.UPDATE in events:
        cause = f"an UPDATE that leaves a long value of {', '.join(long)} as it is reaches nobody: policies look at it"
        yield Finding("policy_on_update", "warning", table.pattern, cause, repair)


def _toastable(info: RelationInfo) -> set[str]:
    return {column.name for column in info.columns if column.type_oid not in NEVER_TOASTED}


def _with_long_values(connection: Connection, oids: Sequence[int]) -> set[int]:
    """Of these tables those in which some value is stored apart, as only long ones are."""
    with connection.cursor() as cursor:
        cursor.execute(_LONG_VALUES, {"oids": list(oids)})
        return {oid for (oid,) in cursor.fetchall()}


def judge_doubts(connection: Connection, schema: str, only: Collection[Table] | None = None) -> Iterator[Finding]:
    """What running daemons have withheld because nobody could say who may see it. ``only``: of these tables.

    Raises psycopg2.Error.
    """
    names = None if only is None else {f"{table.schema}.{table.name}" for table in only}
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(_IN_DOUBT).format(nodes=sql.Identifier(schema, "nodes")), {"seconds": NODE_SECONDS})
        counts = cursor.fetchall()
    for name, reason, rows in counts:
        if name is None or (names is not None and name not in names):
            continue
        cause = f"{rows} rows were kept from viewers, since nobody could say whether they may see them: {reason}"
        repair = _REPAIRS.get(reason, _OTHER_COLUMNS).format(quote_table(*name.partition(".")[::2]))
        yield Finding("rows_in_doubt", "warning", name, cause, repair)
