-- What moderation and the delivery of stored messages need: hidden and expiring messages, and the place where nodes
-- leave what is too large for NOTIFY.
-- Locks messages and its partitions against everybody for the instant of each ALTER; nothing is rewritten, and the
-- index is of rows that do not exist yet. Partitions made later take the columns from the parent.

alter table {schema}.messages add column hidden boolean not null default false;
alter table {schema}.messages add column expires_at timestamptz;
comment on column {schema}.messages.hidden is 'taken back by a moderator: neither replayed nor listed';
comment on column {schema}.messages.expires_at is 'when it is deleted whatever its channel keeps; null: as the channel says';
create index messages_expires_at_idx on {schema}.messages (expires_at) where expires_at is not null;

create unlogged table {schema}.bus_payloads (
    id uuid not null,
    node_id text not null,
    payload bytea not null,
    inserted_at timestamptz not null default now(),
    constraint bus_payloads_pkey primary key (id)
);
comment on table {schema}.bus_payloads is 'what nodes tell each other and NOTIFY cannot carry; sealed, and deleted after a minute';
create index bus_payloads_inserted_at_idx on {schema}.bus_payloads (inserted_at);

create or replace function {schema}.cleanup_expired_broadcasts(retention_hours integer default 24)
returns integer
language plpgsql
set search_path = ''
as $function$
declare
    deleted integer;
begin
    if retention_hours is null or retention_hours < 0 then
        raise exception 'retention_hours must not be negative' using errcode = 'invalid_parameter_value';
    end if;
    delete from {schema}.messages m
     where m.sent_at < now() - make_interval(
         hours => coalesce(
             (select c.retention_hours from {schema}.channels c where c.id = m.channel_id),
             cleanup_expired_broadcasts.retention_hours
         )
     )
        or m.expires_at < now();
    get diagnostics deleted = row_count;
    return deleted;
end
$function$;
