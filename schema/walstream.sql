-- The schema as it stands, for reading; `walstream init` makes it from migrations/. Both are compared by
-- integration/schema/test_reference_schema.py. {schema} stands for the schema's name.

create table {schema}.schema_migrations (
    version integer not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now(),
    constraint schema_migrations_pkey primary key (version)
);
comment on table {schema}.schema_migrations is 'walstream: the migrations that this schema has seen';

-- Registered channels and their members. A topic without a row here is an open, ephemeral room.

create function {schema}.touch_updated_at()
returns trigger
language plpgsql
set search_path = ''
as $function$
begin
    new.updated_at := now();
    return new;
end
$function$;
comment on function {schema}.touch_updated_at() is 'trigger: the time of the last change of a row of ours';

create table {schema}.channels (
    id uuid not null default gen_random_uuid(),
    slug text not null,
    name text not null,
    type text not null default 'public',
    metadata jsonb not null default '{}',
    persist boolean not null default true,
    retention_hours integer,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint channels_pkey primary key (id),
    constraint channels_slug_key unique (slug),
    constraint channels_slug_check check (slug <> ''),
    constraint channels_type_check check (type in ('public', 'private', 'presence')),
    constraint channels_metadata_check check (jsonb_typeof(metadata) = 'object'),
    constraint channels_retention_hours_check check (retention_hours > 0)
);
comment on table {schema}.channels is 'registered channels: type, metadata, history';
comment on column {schema}.channels.slug is 'the topic that clients join, without the prefix realtime:';
comment on column {schema}.channels.persist is 'whether broadcasts of clients are stored';
comment on column {schema}.channels.retention_hours is 'age at which its messages are deleted; null: the general rule';
create index channels_type_idx on {schema}.channels (type);
-- Whole old rows in the WAL: the daemon must know which topic has gone.
alter table {schema}.channels replica identity full;
create trigger channels_touch_updated_at
before update on {schema}.channels
for each row execute function {schema}.touch_updated_at();

create table {schema}.channel_members (
    id uuid not null default gen_random_uuid(),
    channel_id uuid not null,
    user_id text not null,
    role text not null default 'member',
    muted boolean not null default false,
    joined_at timestamptz not null default now(),
    constraint channel_members_pkey primary key (id),
    constraint channel_members_channel_id_user_id_key unique (channel_id, user_id),
    constraint channel_members_channel_id_fkey foreign key (channel_id)
        references {schema}.channels (id) on delete cascade,
    constraint channel_members_user_id_check check (user_id <> ''),
    constraint channel_members_role_check check (role in ('member', 'moderator', 'admin'))
);
comment on table {schema}.channel_members is 'who belongs to a registered channel, and as what';
create index channel_members_user_id_idx on {schema}.channel_members (user_id);
alter table {schema}.channel_members replica identity full;

create function {schema}.check_max_members()
returns trigger
language plpgsql
security definer
set search_path = ''
as $function$
declare
    bound jsonb;
begin
    -- The lock makes two joins that arrive together count one after the other.
    select c.metadata -> 'max_members'
      into bound
      from {schema}.channels c
     where c.id = new.channel_id
       for no key update;
    if jsonb_typeof(bound) = 'number'
       and (select count(*) from {schema}.channel_members m where m.channel_id = new.channel_id) >= bound::numeric
       -- An upsert of someone who is in already adds nobody.
       and not exists (
           select from {schema}.channel_members m where m.channel_id = new.channel_id and m.user_id = new.user_id
       )
    then
        raise exception 'the channel is full: it has % members', bound
            using errcode = 'check_violation', constraint = 'channel_members_max_members_check';
    end if;
    return new;
end
$function$;
comment on function {schema}.check_max_members() is 'trigger: metadata.max_members of a channel is a bound';
create trigger channel_members_check_max_members
before insert on {schema}.channel_members
for each row execute function {schema}.check_max_members();

-- Stored broadcasts, one partition a day, and the functions with which SQL sends them.

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
    hidden boolean not null default false,
    expires_at timestamptz,
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
comment on column {schema}.messages.hidden is 'taken back by a moderator: neither replayed nor listed';
comment on column {schema}.messages.expires_at is 'when it is deleted whatever its channel keeps; null: as the channel says';
create index messages_topic_sent_at_seq_idx on {schema}.messages (topic, sent_at, seq);
create index messages_channel_id_idx on {schema}.messages (channel_id) where channel_id is not null;
create index messages_sent_at_idx on {schema}.messages (sent_at);
create index messages_expires_at_idx on {schema}.messages (expires_at) where expires_at is not null;

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
     )
        or m.expires_at < now();
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

-- What the daemon could not read of the WAL and left out (WALSTREAM_POISON=skip).

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

-- Which tables are captured. The daemon follows this table through the WAL: SQL and command line are equal here.

create table {schema}.subscriptions (
    id uuid not null default gen_random_uuid(),
    table_name text not null,
    events text[] not null default '{INSERT,UPDATE,DELETE}',
    filter text,
    columns text[],
    notify boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint subscriptions_pkey primary key (id),
    constraint subscriptions_table_name_key unique (table_name),
    constraint subscriptions_table_name_check check (table_name <> ''),
    constraint subscriptions_events_check check (
        cardinality(events) > 0
        and events <@ array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']
    ),
    constraint subscriptions_filter_check check (filter <> ''),
    constraint subscriptions_columns_check check (cardinality(columns) > 0 and array_position(columns, null) is null)
);
comment on table {schema}.subscriptions is 'the tables whose changes are captured';
comment on column {schema}.subscriptions.table_name
    is 'schema.table, schema.* or *.*; the most specific row that matches a table alone applies';
comment on column {schema}.subscriptions.filter is 'row filter; null captures every row';
comment on column {schema}.subscriptions.columns is 'columns that leave the database; null means all';
comment on column {schema}.subscriptions.notify is 'also NOTIFY "realtime:table:<schema>.<table>", after the commit';
-- Whole old rows in the WAL: the daemon must know which table is no longer captured.
alter table {schema}.subscriptions replica identity full;

create function {schema}.complete_subscription()
returns trigger
language plpgsql
set search_path = ''
as $function$
begin
    -- Events in one spelling and order, each once; what is no event stays, for the constraint to refuse.
    select coalesce(
               array_agg(e.event order by array_position(array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'], e.event)),
               '{}'
           )
      into new.events
      from (select distinct upper(btrim(given.event)) as event from unnest(new.events) given (event)) e;
    if tg_op = 'UPDATE' then
        new.updated_at := now();
    end if;
    return new;
end
$function$;
comment on function {schema}.complete_subscription() is 'trigger: events in one spelling, updated_at';
create trigger subscriptions_complete_subscription
before insert or update on {schema}.subscriptions
for each row execute function {schema}.complete_subscription();

-- What is true only while daemons run: who is present, who is connected, which nodes there are, what they tell another.
-- Unlogged: it costs no WAL, is empty after a crash of the server, and the nodes write it again.

create unlogged table {schema}.nodes (
    node_id text not null,
    address text,
    version text,
    pid integer,
    slot text,
    clients integer not null default 0,
    status jsonb not null default '{}',
    started_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    constraint nodes_pkey primary key (node_id)
);
comment on table {schema}.nodes is 'running daemons; each touches its row at every heartbeat';
comment on column {schema}.nodes.status is 'what the daemon reports of itself, see schema/README.md';

create unlogged table {schema}.connections (
    id uuid not null default gen_random_uuid(),
    connection_id text not null,
    user_id text,
    status text not null default 'connected',
    connected_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    metadata jsonb not null default '{}',
    node_id text,
    constraint connections_pkey primary key (id),
    constraint connections_connection_id_key unique (connection_id),
    constraint connections_status_check check (status in ('connected', 'disconnected'))
);
comment on table {schema}.connections is 'WebSocket connections of all nodes';
create index connections_user_id_idx on {schema}.connections (user_id);
create index connections_status_last_seen_at_idx on {schema}.connections (status, last_seen_at);
create index connections_node_id_idx on {schema}.connections (node_id);

create unlogged table {schema}.presence (
    id uuid not null default gen_random_uuid(),
    user_id text not null,
    channel_id uuid,
    topic text,
    status text not null default 'online',
    metadata jsonb not null default '{}',
    last_seen_at timestamptz not null default now(),
    node_id text not null default '',
    constraint presence_pkey primary key (id),
    constraint presence_channel_id_fkey foreign key (channel_id)
        references {schema}.channels (id) on delete cascade,
    constraint presence_user_id_check check (user_id <> ''),
    constraint presence_status_check check (status in ('online', 'away', 'offline'))
);
comment on table {schema}.presence is 'who is where; a row without channel and topic is global presence';
comment on column {schema}.presence.node_id is 'the node with the sockets; empty for what SQL or the command line tracks';
create unique index presence_user_id_topic_node_id_key on {schema}.presence (user_id, coalesce(topic, ''), node_id);
create index presence_user_id_idx on {schema}.presence (user_id);
create index presence_channel_id_idx on {schema}.presence (channel_id);
create index presence_status_last_seen_at_idx on {schema}.presence (status, last_seen_at);

create function {schema}.complete_presence()
returns trigger
language plpgsql
security definer
set search_path = ''
as $function$
begin
    if new.channel_id is not null then
        new.topic := (select c.slug from {schema}.channels c where c.id = new.channel_id);
    else
        new.channel_id := (select c.id from {schema}.channels c where c.slug = new.topic);
    end if;
    return new;
end
$function$;
comment on function {schema}.complete_presence() is 'trigger: ties topic and channel together';
create trigger presence_complete_presence
before insert or update on {schema}.presence
for each row execute function {schema}.complete_presence();

create function {schema}.notify_presence()
returns trigger
language plpgsql
set search_path = ''
as $function$
begin
    -- An id and no more: anyone in the database may listen.
    perform pg_notify(tg_table_schema || ':presence', tg_op || ' ' || coalesce(new.id, old.id)::text);
    return null;
end
$function$;
comment on function {schema}.notify_presence() is 'trigger: tells nodes that SQL or the command line changed presence';
-- Nodes tell each other of their own rows, many at a time.
create trigger presence_notify_insert
after insert on {schema}.presence
for each row when (new.node_id = '') execute function {schema}.notify_presence();
create trigger presence_notify_update
after update on {schema}.presence
for each row when (new.node_id = '') execute function {schema}.notify_presence();
create trigger presence_notify_delete
after delete on {schema}.presence
for each row when (old.node_id = '') execute function {schema}.notify_presence();

create unlogged table {schema}.bus_payloads (
    id uuid not null,
    node_id text not null,
    payload bytea not null,
    inserted_at timestamptz not null default now(),
    constraint bus_payloads_pkey primary key (id)
);
comment on table {schema}.bus_payloads is 'what nodes tell each other and NOTIFY cannot carry; sealed, and deleted after a minute';
create index bus_payloads_inserted_at_idx on {schema}.bus_payloads (inserted_at);

create function {schema}.cleanup_stale_connections(timeout_seconds integer default 300)
returns integer
language plpgsql
set search_path = ''
as $function$
declare
    stale integer;
begin
    if timeout_seconds is null or timeout_seconds < 0 then
        raise exception 'timeout_seconds must not be negative' using errcode = 'invalid_parameter_value';
    end if;
    update {schema}.connections
       set status = 'disconnected'
     where status = 'connected'
       and last_seen_at < now() - make_interval(secs => timeout_seconds);
    get diagnostics stale = row_count;
    return stale;
end
$function$;
comment on function {schema}.cleanup_stale_connections(integer)
    is 'mark connections that have been silent for so long as disconnected; returns how many';

create function {schema}.cleanup_stale_presence(timeout_seconds integer default 300)
returns integer
language plpgsql
set search_path = ''
as $function$
declare
    stale integer;
begin
    if timeout_seconds is null or timeout_seconds < 0 then
        raise exception 'timeout_seconds must not be negative' using errcode = 'invalid_parameter_value';
    end if;
    update {schema}.presence
       set status = 'offline'
     where status <> 'offline'
       and last_seen_at < now() - make_interval(secs => timeout_seconds);
    get diagnostics stale = row_count;
    return stale;
end
$function$;
comment on function {schema}.cleanup_stale_presence(integer)
    is 'mark people who have not been seen for so long as offline; returns how many rows';
