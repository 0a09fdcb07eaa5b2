-- Owner: host.
create table hosts (
  id            text primary key,
  name          text not null unique,
  public_key    bytea not null unique,
  state         text not null check (state in ('pending', 'active', 'cordoned', 'draining', 'maintenance', 'retired')),
  online        boolean not null default false,
  epoch         bigint not null default 0, -- of the connection that online belongs to
  last_seen     timestamptz,
  registered_at timestamptz not null default now(),
  address       text not null default '',  -- as seen
  hostname      text not null default '',
  addresses     text[] not null default '{}',
  os            text not null default '',
  os_version    text not null default '',
  kernel        text not null default '',
  arch          text not null default '',
  deployment    text not null default 'traditional',
  cpu_model     text not null default '',
  cpus          int not null default 0,
  memory        bigint not null default 0,
  disk          bigint not null default 0,
  runtime       text not null default '',
  driver        text not null default '',
  cuda          text not null default '',
  agent         text not null default '',
  boot_id       text not null default '',
  clock_offset  bigint not null default 0, -- milliseconds
  labels        jsonb not null default '{}',
  tags          text[] not null default '{}',
  groups        text[] not null default '{}'
);

create table host_usage (
  host_id     text primary key references hosts on delete cascade,
  at          timestamptz not null,
  cpu_percent real not null,
  memory_used bigint not null,
  disk_used   bigint not null,
  load1       real not null,
  uptime      bigint not null
) with (fillfactor = 50); -- rewritten every few seconds: room for HOT updates

create table gpus (
  uuid           text primary key,
  host_id        text not null references hosts on delete cascade,
  index          int not null,
  name           text not null,
  brand          text not null default '',
  architecture   text not null default '',
  memory         bigint not null,
  cuda_cores     int not null default 0,
  capability     text not null default '',
  power_limit    real not null default 0,
  temp_limit     real not null default 0,
  mig            boolean not null default false,
  numa_node      int not null default -1,
  pci            text not null default '',
  links          int[] not null default '{}',
  present        boolean not null default true, -- the host still reports it
  healthy        boolean not null default true,
  health_message text not null default '',
  maintenance    boolean not null default false
);
create index gpus_host on gpus (host_id, index);

create table join_tokens (
  id         text primary key,
  hash       bytea not null unique,
  uses       int not null check (uses > 0),
  used       int not null default 0,
  expires_at timestamptz not null,
  approval   boolean not null default false,
  labels     jsonb not null default '{}',
  revoked    boolean not null default false,
  created_by text not null,
  created_at timestamptz not null default now()
);

create table host_events (
  id       bigint generated always as identity primary key,
  host_id  text not null references hosts on delete cascade,
  seq      bigint, -- the agent's; null: the control plane's own
  at       timestamptz not null,
  severity text not null,
  reason   text not null,
  message  text not null,
  workload text not null default '',
  unique (host_id, seq)
);
create index host_events_host on host_events (host_id, id desc);
