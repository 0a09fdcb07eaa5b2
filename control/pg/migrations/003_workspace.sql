create table workspaces (
  id         text primary key,
  name       text not null unique,
  created_at timestamptz not null default now()
);

create table workspace_members (
  workspace_id text not null references workspaces on delete cascade,
  user_id      text not null references users on delete cascade,
  role         text not null check (role in ('owner', 'admin', 'member', 'viewer')),
  added_at     timestamptz not null default now(),
  primary key (workspace_id, user_id)
);
create index workspace_members_user on workspace_members (user_id);
