-- What the daemon could not read of the WAL and left out (WALSTREAM_POISON=skip).
-- Locks nothing that exists.

create table {schema}.parked (
    id bigint generated always as identity,
    parked_at timestamptz not null default now(),
    slot text not null,
    plugin text not null,
    lsn pg_lsn not null,
    xid bigint,
    table_name text,
    reason text not null,
    size_bytes bigint not null default 0,
    digest text not null,
    content bytea,
    constraint parked_pkey primary key (id),
    constraint parked_slot_lsn_digest_key unique (slot, lsn, digest)
);
comment on table {schema}.parked is 'what the daemon could not read of the WAL, and left out; see walstream slot parked';
comment on column {schema}.parked.lsn is 'where the message begins, or the commit of a transaction that was left out whole';
comment on column {schema}.parked.content is 'the beginning of the message as it came; null where PostgreSQL could not make one';
