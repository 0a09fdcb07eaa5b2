create table users (
  id            text primary key,
  email         text not null,
  name          text not null,
  password_hash text not null default '',
  admin         boolean not null default false,
  disabled      boolean not null default false,
  created_at    timestamptz not null default now()
);
create unique index users_email on users (lower(email));

create table api_tokens (
  id         text primary key,
  user_id    text not null references users on delete cascade,
  name       text not null,
  hash       bytea not null unique,
  expires_at timestamptz,
  created_at timestamptz not null default now(),
  used_at    timestamptz
);
create index api_tokens_user on api_tokens (user_id);

create table sessions (
  hash       bytea primary key,
  user_id    text not null references users on delete cascade,
  expires_at timestamptz not null,
  created_at timestamptz not null default now()
);
create index sessions_user on sessions (user_id);

create table ssh_keys (
  id          text primary key,
  user_id     text not null references users on delete cascade,
  name        text not null,
  fingerprint text not null,
  public_key  text not null,
  created_at  timestamptz not null default now(),
  used_at     timestamptz
);
create unique index ssh_keys_fingerprint on ssh_keys (fingerprint);
create index ssh_keys_user on ssh_keys (user_id);
