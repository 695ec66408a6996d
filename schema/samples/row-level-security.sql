-- Policies to begin with: who sees which registered channels and members by SQL, and who may be in which private room.
-- Apply it after `walstream init`, as the owner of the tables or a superuser: psql -f row-level-security.sql
-- Tokens name people by `sub`. Where your ids are uuids `auth.uid()::text` does as well as auth.jwt() ->> 'sub'.

begin;

-- Clients may read both tables by SQL, as far as the policies below go. Rooms do not need this.
grant select on realtime.channels, realtime.channel_members to authenticated;

alter table realtime.channels enable row level security;
alter table realtime.channels force row level security;
alter table realtime.channel_members enable row level security;
alter table realtime.channel_members force row level security;

-- FORCE is for the owner, too, and walstream's triggers run as the owner: they have to see every row.
do $owner$
declare
    owner text;
begin
    select c.relowner::regrole::text into owner from pg_catalog.pg_class c where c.oid = 'realtime.channels'::regclass;
    execute format('create policy owner on realtime.channels to %s using (true) with check (true)', owner);
    execute format('create policy owner on realtime.channel_members to %s using (true) with check (true)', owner);
end
$owner$;

create policy "people see their own memberships" on realtime.channel_members
for select to authenticated
using (user_id = (select auth.jwt() ->> 'sub'));

-- The memberships that this looks at are one's own, by the policy above.
create policy "people see open channels, and private ones that they belong to" on realtime.channels
for select to authenticated
using (
    type <> 'private'
    or id in (
        select m.channel_id
          from realtime.channel_members m
         where m.user_id = (select auth.jwt() ->> 'sub')
    )
);

-- Rooms. Members of registered private channels need no policy to be in them; this one lets members read what is
-- stored by SQL.
create policy "members read their channels" on realtime.messages
for select to authenticated
using (
    channel_id in (
        select m.channel_id
          from realtime.channel_members m
         where m.user_id = (select auth.jwt() ->> 'sub')
    )
);

-- And, for realtime.send() and INSERT by SQL, write it, unless they are muted.
create policy "members write to their channels" on realtime.messages
for insert to authenticated
with check (
    extension in ('broadcast', 'presence')
    and channel_id in (
        select m.channel_id
          from realtime.channel_members m
         where m.user_id = (select auth.jwt() ->> 'sub')
           and not m.muted
    )
);

-- A private topic of one's own, which nobody has to register: user:<sub>.
create policy "people have a topic of their own" on realtime.messages
for all to authenticated
using (realtime.topic() = 'user:' || (select auth.jwt() ->> 'sub') and topic = realtime.topic())
with check (realtime.topic() = 'user:' || (select auth.jwt() ->> 'sub') and topic = realtime.topic());

commit;
