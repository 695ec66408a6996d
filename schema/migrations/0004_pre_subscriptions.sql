-- Which tables are captured. The daemon follows this table through the WAL: SQL and command line are equal here.
-- Locks nothing that exists.

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
