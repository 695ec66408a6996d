-- Runs once, as superuser, when the data directory is made. Every statement may be repeated.
-- `walstream init` finds these roles and makes what else it needs.

-- The daemon's login; without WALSTREAM_DB_PASSWORD it exists and cannot log in from outside.
\set password ''
\getenv password WALSTREAM_DB_PASSWORD

select 'create role walstream_daemon noinherit replication login'
 where not exists (select from pg_catalog.pg_roles where rolname = 'walstream_daemon')
\gexec

select pg_catalog.format('alter role walstream_daemon password %L', :'password')
 where :'password' <> ''
\gexec

-- The roles that tokens name. They own nothing and cannot log in.
select pg_catalog.format('create role %I nologin', wanted.name)
  from (values ('anon'), ('authenticated'), ('service_role')) as wanted (name)
 where not exists (select from pg_catalog.pg_roles where rolname = wanted.name)
\gexec

alter role service_role bypassrls;
grant anon, authenticated, service_role to walstream_daemon;
