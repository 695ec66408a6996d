-- What has been applied to this schema. Written by `walstream init` only, one row per file of this directory.
-- Locks nothing that exists.

create table {schema}.schema_migrations (
    version integer not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now(),
    constraint schema_migrations_pkey primary key (version)
);
comment on table {schema}.schema_migrations is 'walstream: the migrations that this schema has seen';
