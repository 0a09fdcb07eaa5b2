create table recording_policies (
  workspace_id text primary key references workspaces on delete cascade,
  mode         text not null check (mode in ('off', 'terminal', 'all')),
  keep_days    int not null check (keep_days between 1 and 3650)
);

create table recordings (
  id               text primary key,
  workspace_id     text not null references workspaces on delete cascade,
  environment_id   text not null,
  environment_name text not null,
  user_id          text not null,
  user_name        text not null,
  via              text not null, -- ssh, terminal, sftp
  started_at       timestamptz not null,
  ended_at         timestamptz,   -- null while it runs
  touched_at       timestamptz not null,
  cut              boolean not null default false, -- ended with the server that made it
  bytes            bigint not null default 0,
  expires_at       timestamptz not null
);
create index recordings_workspace on recordings (workspace_id, started_at desc);
create index recordings_expiry on recordings (expires_at);
create index recordings_open on recordings (touched_at) where ended_at is null;
