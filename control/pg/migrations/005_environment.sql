create table environments (
  id            text primary key,
  workspace_id  text not null references workspaces,
  name          text not null,
  owner_id      text not null,
  image         text not null,
  command       text[] not null default '{}',
  env           jsonb not null default '{}',
  run_as        text not null default '',
  workdir       text not null default '',
  resources     jsonb not null,
  mounts        jsonb not null default '[]',
  affinity      jsonb not null default '{}',
  prefer        jsonb not null default '{}',
  restart       text not null check (restart in ('always', 'on-failure', 'never')),
  priority      integer not null default 0,
  document_bytes integer not null, -- about what it takes in its host's document
  host_id       text not null default '', -- where its files are; '': nowhere yet
  revision      bigint not null default 1,
  generation    bigint not null default 0, -- of its host's document that carries the last change
  want          text not null check (want in ('running', 'stopped', 'deleted')),
  created_at    timestamptz not null default now(),
  changed_at    timestamptz not null default now(), -- of phase

  -- as the host reports it
  phase         text not null,
  message       text not null default '',
  reported_revision bigint not null default 0,
  pid           bigint not null default 0,
  started_at    timestamptz,
  exit_code     integer,
  restarts      bigint not null default 0,
  retry_at      timestamptz,
  pulled        bigint not null default 0,
  pull_total    bigint not null default 0,
  address       text not null default '',
  unique (workspace_id, name)
);
create index environments_host on environments (host_id) where host_id <> '';

-- Append-only. Written while the environment's row is locked, so that ids grow
-- in the order of commits and a cursor misses nothing.
create table environment_events (
  id             bigint generated always as identity primary key,
  environment_id text not null,
  workspace_id   text not null,
  at             timestamptz not null default clock_timestamp(),
  severity       text not null check (severity in ('normal', 'warning', 'security')),
  reason         text not null,
  message        text not null
);
create index environment_events_environment on environment_events (environment_id, id);

-- The newest report of each host: what is older is ignored.
create table environment_reports (
  host_id   text primary key,
  epoch     bigint not null,
  seq       bigint not null,
  event_seq bigint not null default 0,
  drained   boolean not null default false -- what the host's document was last made for
);
