-- Registered channels and their members. A topic without a row here is an open, ephemeral room.
-- Locks nothing that exists.

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
