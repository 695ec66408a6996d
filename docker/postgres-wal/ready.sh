#!/bin/sh
# Healthy only when a logical slot can be created: the server runs, wal_level is logical, wal2json is there and allowed.
# Proven once for each start of the server, since a slot waits for running transactions; afterwards a query is enough.
set -eu

export PGUSER="${PGUSER:-${POSTGRES_USER:-postgres}}" PGCONNECT_TIMEOUT=3
export PGDATABASE="${PGDATABASE:-${POSTGRES_DB:-$PGUSER}}"
proof=${READY_PROOF:-/tmp/walstream-ready}

ask() {
    PGOPTIONS='-c statement_timeout=5s' psql -XAtq -v ON_ERROR_STOP=1 -c "$1"
}

started=$(ask 'select pg_postmaster_start_time()')
[ "$(cat "$proof" 2>/dev/null)" = "$started" ] && exit 0
# A temporary slot; it ends with its session.
ask "select pg_create_logical_replication_slot('ready_' || pg_backend_pid(), 'wal2json', true)" >/dev/null
echo "$started" >"$proof"
