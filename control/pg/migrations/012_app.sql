-- Ports of environments that somebody has said more of than that they exist.
create table apps (
  environment_id text not null references environments on delete cascade,
  name           text not null,
  port           int not null default 0,     -- 0: it listens on a socket
  socket         text not null default '',
  base_path      boolean not null default false, -- it knows the path that it is reached under
  visibility     text not null check (visibility in ('private', 'workspace', 'users', 'public')),
  users          text[] not null default '{}',
  owner_id       text not null,
  created_at     timestamptz not null default now(),
  primary key (environment_id, name)
);
create unique index apps_port on apps (environment_id, port) where port > 0;

-- What a browser shows, or is about to. Each ends with the session or token
-- that it was got with.
create table app_passes (
  hash           bytea primary key,
  kind           text not null check (kind in ('login', 'ticket', 'cookie')),
  user_id        text not null references users on delete cascade,
  session        bytea references sessions on delete cascade,
  token_id       text references api_tokens on delete cascade,
  environment_id text references environments on delete cascade, -- null: a login, for all apps of the user
  app            text not null default '',
  state          text not null default '', -- of a ticket: which browser may use it; '': the first
  expires_at     timestamptz not null,
  check (session is not null or token_id is not null)
);
create index app_passes_expiry on app_passes (expires_at);
create index app_passes_session on app_passes (session);
create index app_passes_token on app_passes (token_id);

-- The key in an app's host name is the beginning of its environment's id.
create index environments_app_key on environments (left(id, 14));
