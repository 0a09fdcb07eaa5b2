-- What somebody may show instead of logging in: once or, as a cookie, until it
-- ends; each ends with the session or token that it was got with, and with what
-- it leads to.
create table tickets (
  hash           bytea primary key, -- SHA-256; the secret itself is not kept
  kind           text not null,
  user_id        text not null references users on delete cascade,
  session        bytea references sessions on delete cascade,
  token_id       text references api_tokens on delete cascade,
  environment_id text references environments on delete cascade,
  host_id        text references hosts on delete cascade,
  detail         jsonb not null,
  expires_at     timestamptz not null
);
create index tickets_expiry on tickets (expires_at);
create index tickets_session on tickets (session);
create index tickets_token on tickets (token_id);

insert into tickets (hash, kind, user_id, session, token_id, environment_id, detail, expires_at)
  select hash, 'app ' || kind, user_id, session, token_id, environment_id, jsonb_build_object('app', app, 'state', state), expires_at from app_passes;
drop table app_passes;
drop table rdp_tokens; -- nobody waits a minute for an upgrade
drop table terminal_tickets;
