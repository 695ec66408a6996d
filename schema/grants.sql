-- Who may do what, after every `walstream init`: roles that came into being since are served too.
-- Takes short locks on walstream's own tables only.

revoke all on schema {schema} from public;
revoke all on all tables in schema {schema} from public;
revoke all on all sequences in schema {schema} from public;
revoke all on all functions in schema {schema} from public;

do $grants$
declare
    client text;
    ours text;
begin
    for client in
        select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
    loop
        execute format('grant usage on schema {schema} to %I', client);
        -- Policies decide about each row: row-level security is on.
        execute format('grant select, insert, update on table {schema}.messages to %I', client);
        execute format('grant usage on sequence {schema}.messages_seq_seq to %I', client);
        execute format('grant execute on function {schema}.topic() to %I', client);
        execute format('grant execute on function {schema}.send(jsonb, text, text, boolean) to %I', client);
        execute format('grant execute on function {schema}.send_binary(bytea, text, text, boolean) to %I', client);
        execute format(
            'grant execute on function'
            ' {schema}.broadcast_changes(text, text, text, text, text, record, record, text) to %I',
            client
        );
    end loop;
    for ours in
        select r.rolname from pg_catalog.pg_roles r where r.rolname in ('service_role', 'walstream_daemon')
    loop
        execute format('grant usage on schema {schema} to %I', ours);
        execute format('grant select, insert, update, delete on all tables in schema {schema} to %I', ours);
        execute format('revoke insert, update, delete on table {schema}.schema_migrations from %I', ours);
        execute format('revoke update on table {schema}.bus_payloads from %I', ours);
        execute format('grant usage on all sequences in schema {schema} to %I', ours);
        execute format('grant execute on all functions in schema {schema} to %I', ours);
    end loop;
    -- The daemon sees every row, also of tables whose row-level security an operator switches on.
    if exists (select from pg_catalog.pg_roles r where r.rolname = 'walstream_daemon') then
        for ours in
            select c.relname
              from pg_catalog.pg_class c
             where c.relnamespace = '{schema}'::regnamespace
               and c.relkind in ('r', 'p')
               and not c.relispartition
               and c.relname <> 'schema_migrations'
               and not exists (
                   select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'walstream_daemon'
               )
        loop
            execute format(
                'create policy walstream_daemon on {schema}.%I to walstream_daemon using (true) with check (true)', ours
            );
        end loop;
    end if;
end
$grants$;
