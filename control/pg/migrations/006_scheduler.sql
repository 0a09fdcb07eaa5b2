-- What a placed workload takes of its host; owner: scheduler. No foreign key
-- to workloads: the scheduler serves several kinds of them.
create table host_allocations (
  workload     text primary key,
  workspace_id text not null,
  host_id      text not null references hosts on delete cascade,
  milli_cpu    bigint not null check (milli_cpu >= 0),
  memory       bigint not null check (memory >= 0),
  disk         bigint not null check (disk >= 0),
  placed_at    timestamptz not null default now()
);
create index host_allocations_host on host_allocations (host_id);

-- The primary key is what forbids giving a GPU twice. A GPU that leaves the
-- inventory stays allocated until its workload lets go.
create table gpu_allocations (
  gpu      text primary key, -- UUID
  host_id  text not null references hosts on delete cascade,
  workload text not null references host_allocations on delete cascade
);
create index gpu_allocations_workload on gpu_allocations (workload);
create index gpu_allocations_host on gpu_allocations (host_id);

-- Workloads that wait, and why.
create table placement_queue (
  workload     text primary key,
  workspace_id text not null,
  request      jsonb not null,
  priority     integer not null,
  since        timestamptz not null default now(),
  tried_at     timestamptz not null default now(),
  summary      text not null,
  rejected     jsonb not null
);
create index placement_queue_order on placement_queue (priority desc, since, workload);

-- History of decisions.
create table placements (
  id           bigint generated always as identity primary key,
  at           timestamptz not null default now(),
  workload     text not null,
  workspace_id text not null,
  outcome      text not null check (outcome in ('placed', 'waiting', 'refused')),
  host_id      text not null default '',
  gpus         text[] not null default '{}',
  strategy     text not null,
  looked       integer not null,
  summary      text not null,
  rejected     jsonb not null, -- per host, one sentence each
  waited_ms    bigint not null default 0,
  decision_us  bigint not null
);
create index placements_workload on placements (workload, id desc);
create index placements_workspace on placements (workspace_id, id desc);
create index placements_at on placements (at);

create table scheduler_settings (
  id       integer primary key check (id = 1), -- one row
  strategy text not null
);
insert into scheduler_settings (id, strategy) values (1, 'best_fit');
