-- Owner: replica. Servers that share this database.
create table replicas (
  id         text primary key,
  address    text not null, -- host:port where the others bring it streams; empty: nowhere
  started_at timestamptz not null default now(),
  seen_at    timestamptz not null default now() -- its lease is over some seconds later
);

-- Of the server that has the host's newest connection; empty: none is known.
alter table hosts add column replica text not null default '';
create index hosts_replica on hosts (replica) where online;
