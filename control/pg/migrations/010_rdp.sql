-- Tokens for one remote desktop each: used within a minute, once.
create table rdp_tokens (
  hash           bytea primary key,
  user_id        text not null references users on delete cascade,
  workspace_id   text references workspaces on delete cascade,
  environment_id text references environments on delete cascade,
  host_id        text references hosts on delete cascade,
  clipboard      text not null check (clipboard in ('both', 'to-host', 'from-host', 'none')),
  layout         bigint not null,
  server         text not null,
  expires_at     timestamptz not null,
  check ((environment_id is null) <> (host_id is null))
);
create index rdp_tokens_expiry on rdp_tokens (expires_at);
