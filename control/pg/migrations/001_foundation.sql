-- Keys of the control plane, shared by its replicas; owner: keys.
create table secret_keys (
  name       text primary key,
  material   bytea not null,
  created_at timestamptz not null default now()
);

-- Who did what; owner: audit. Rows are chained by audit.Seal, in order of seal.
create table audit_entries (
  id         bigint generated always as identity primary key,
  at         timestamptz not null default clock_timestamp(),
  actor      text not null,
  action     text not null,
  target     text not null default '',
  workspace  text not null default '',
  remote     text not null default '',
  detail     jsonb not null default '{}',
  seal       bigint unique, -- place in the chain
  hash       bytea
);
create index audit_entries_unsealed on audit_entries (id) where seal is null;
create index audit_entries_workspace on audit_entries (workspace, id desc);
