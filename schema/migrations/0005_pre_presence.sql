-- What is true only while daemons run: who is present, who is connected, which nodes there are.
-- Unlogged: it costs no WAL, is empty after a crash of the server, and the nodes write it again.
-- Locks nothing that exists.

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
