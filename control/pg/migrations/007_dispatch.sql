-- Owner: dispatch. One row per host: what it shall run, and what it has.
create table desired_documents (
  host_id    text primary key references hosts on delete cascade,
  dirty      boolean not null default true,  -- wishes changed since it was compiled
  generation bigint not null default 0,
  digest     bytea not null default '',      -- SHA-256 of the document before signing
  document   bytea not null default '',      -- COSE_Sign1
  observed   bigint not null default 0,      -- what the agent has on disk
  applied    bigint not null default 0,      -- what its containers agree with
  changed_at timestamptz not null default now()
);
