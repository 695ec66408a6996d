-- Stored broadcasts, one partition a day, and the functions with which SQL sends them.
-- Locks nothing that exists.

-- A plain sequence: identity columns of partitioned tables differ between server versions.
create sequence {schema}.messages_seq_seq as bigint;

create table {schema}.messages (
    id uuid not null default gen_random_uuid(),
    seq bigint not null default nextval('{schema}.messages_seq_seq'),
    topic text not null,
    channel_id uuid,
    extension text not null default 'broadcast',
    event text,
    event_type text,
    payload jsonb,
    binary_payload bytea,
    private boolean not null default false,
    sender_id text,
    sent_at timestamptz not null default now(),
    inserted_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint messages_pkey primary key (id, inserted_at),
    constraint messages_channel_id_fkey foreign key (channel_id)
        references {schema}.channels (id) on delete cascade,
    constraint messages_payload_check check (payload is null or binary_payload is null)
) partition by range (inserted_at);
alter sequence {schema}.messages_seq_seq owned by {schema}.messages.seq;
comment on table {schema}.messages is 'stored broadcasts; its policies decide who may read and write private topics';
comment on column {schema}.messages.seq is 'order of sending, as a tie-break of sent_at';
comment on column {schema}.messages.topic is 'without the prefix realtime:';
comment on column {schema}.messages.event_type is 'the same as event';
comment on column {schema}.messages.extension is 'broadcast, or presence and persistence where a policy is asked';
create index messages_topic_sent_at_seq_idx on {schema}.messages (topic, sent_at, seq);
create index messages_channel_id_idx on {schema}.messages (channel_id) where channel_id is not null;
create index messages_sent_at_idx on {schema}.messages (sent_at);

-- Takes the row for which no day's partition exists, so that sending never fails for want of one.
create table {schema}.messages_default partition of {schema}.messages default;

alter table {schema}.messages enable row level security;

create function {schema}.complete_message()
returns trigger
language plpgsql
security definer
set search_path = ''
as $function$
declare
    channel record;
begin
    new.event := coalesce(new.event, new.event_type);
    new.event_type := new.event;
    if new.channel_id is not null then
        select c.id, c.slug, c.type into channel from {schema}.channels c where c.id = new.channel_id;
    else
        select c.id, c.slug, c.type into channel from {schema}.channels c where c.slug = new.topic;
    end if;
    if found then
        new.channel_id := channel.id;
        new.topic := channel.slug;
        -- A registered channel is what its type says, whatever the sender thinks.
        new.private := channel.type = 'private';
    end if;
    return new;
end
$function$;
comment on function {schema}.complete_message() is 'trigger: ties topic and channel, event and event_type together';
create trigger messages_complete_message
before insert on {schema}.messages
for each row execute function {schema}.complete_message();

create function {schema}.topic()
returns text
language sql
stable
set search_path = ''
as $function$
    select nullif(current_setting('realtime.topic', true), '');
$function$;
comment on function {schema}.topic() is 'for policies: the topic that is being asked about, or null';

create function {schema}.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = ''
as $function$
declare
    message_id uuid := gen_random_uuid();
    content jsonb := payload;
begin
    if jsonb_typeof(content) = 'object' and not content ? 'id' then
        content := jsonb_build_object('id', message_id) || content;
    end if;
    perform set_config('realtime.topic', topic, true);
    insert into {schema}.messages (id, topic, extension, event, payload, private)
    values (message_id, topic, 'broadcast', event, content, coalesce(private, true));
exception
    -- The caller's transaction is worth more than the message.
    when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$function$;
comment on function {schema}.send(jsonb, text, text, boolean)
    is 'broadcast to a topic once the transaction commits; a failure is a warning';

create function {schema}.send_binary(payload bytea, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = ''
as $function$
begin
    perform set_config('realtime.topic', topic, true);
    insert into {schema}.messages (topic, extension, event, binary_payload, private)
    values (topic, 'broadcast', event, payload, coalesce(private, true));
exception
    when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$function$;
comment on function {schema}.send_binary(bytea, text, text, boolean)
    is 'broadcast bytes to a topic once the transaction commits; a failure is a warning';

create function {schema}.broadcast_changes(
    topic_name text,
    event_name text,
    operation text,
    table_name text,
    table_schema text,
    new record,
    old record,
    level text default 'ROW'
)
returns void
language plpgsql
set search_path = ''
as $function$
begin
    if level <> 'ROW' then
        raise exception 'Failed to process the row: the trigger must be for each row, not for each %', lower(level);
    end if;
    if operation not in ('INSERT', 'UPDATE', 'DELETE') then
        raise exception 'Failed to process the row: unexpected operation %', operation;
    end if;
    perform {schema}.send(
        jsonb_build_object(
            'schema', table_schema,
            'table', table_name,
            'operation', operation,
            'record', case when operation = 'DELETE' then null else to_jsonb(new) end,
            'old_record', case when operation = 'INSERT' then null else to_jsonb(old) end
        ),
        event_name,
        topic_name
    );
end
$function$;
comment on function {schema}.broadcast_changes(text, text, text, text, text, record, record, text)
    is 'for row triggers: broadcast the change to a private topic';

create function {schema}.cleanup_expired_broadcasts(retention_hours integer default 24)
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
     );
    get diagnostics deleted = row_count;
    return deleted;
end
$function$;
comment on function {schema}.cleanup_expired_broadcasts(integer)
    is 'delete messages of that age, or of the age that their channel sets; returns how many';

create function {schema}.maintain_messages(keep_hours integer default 72, days_ahead integer default 3)
returns table (created integer, dropped integer)
language plpgsql
security definer
set search_path = ''
-- A reader that holds its snapshot open must not make everyone else queue behind us; the next call tries again.
set lock_timeout = '2s'
as $function$
declare
    today date := (now() at time zone 'UTC')::date;
    day date;
    day_start timestamptz;
    day_end timestamptz;
    name text;
    oldest timestamptz;
begin
    if keep_hours is null or keep_hours < 1 or days_ahead is null or days_ahead not between 0 and 31 then
        raise exception 'keep_hours must be at least 1 and days_ahead between 0 and 31'
            using errcode = 'invalid_parameter_value';
    end if;
    created := 0;
    dropped := 0;
    perform pg_advisory_xact_lock(hashtext('walstream messages'), '{schema}.messages'::regclass::oid::integer);
    for day in select d::date from generate_series(today - 1, today + days_ahead, interval '1 day') d loop
        name := 'messages_' || to_char(day, 'YYYY_MM_DD');
        day_start := day::timestamp at time zone 'UTC';
        day_end := (day + 1)::timestamp at time zone 'UTC';
        continue when to_regclass(format('{schema}.%I', name)) is not null;
        -- A day whose rows went to the default partition stays there until they expire.
        continue when exists (
            select from {schema}.messages_default m where m.inserted_at >= day_start and m.inserted_at < day_end
        );
        execute format(
            'create table {schema}.%I (like {schema}.messages including defaults including constraints)', name
        );
        execute format(
            'alter table {schema}.messages attach partition {schema}.%I for values from (%L) to (%L)',
            name, day_start, day_end
        );
        created := created + 1;
    end loop;
    select now() - make_interval(hours => greatest(keep_hours, coalesce(max(c.retention_hours), 0)))
      into oldest
      from {schema}.channels c;
    for name in
        select p.relname
          from pg_catalog.pg_inherits i
          join pg_catalog.pg_class p on p.oid = i.inhrelid
         where i.inhparent = '{schema}.messages'::regclass
           and p.relname ~ '^messages_\d{4}_\d{2}_\d{2}$'
           and (to_date(right(p.relname, 10), 'YYYY_MM_DD') + 1)::timestamp at time zone 'UTC' < oldest
    loop
        execute format('drop table {schema}.%I', name);
        dropped := dropped + 1;
    end loop;
    return next;
end
$function$;
comment on function {schema}.maintain_messages(integer, integer)
    is 'make the partitions of the coming days, drop those whose every message has expired';

select {schema}.maintain_messages();
