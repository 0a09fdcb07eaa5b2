-- What a session that outlives its connections has shown since the last part of
-- its recording, and where it stood then: written before anybody has it, so that
-- another server can go on when one dies.
create table recording_journal (
  recording_id text   not null references recordings on delete cascade,
  n            bigint not null, -- one after the other
  part         int    not null, -- of the recording, which shown is of
  shown        bytea  not null, -- lines of the cast
  tail         bytea  not null, -- begin of a character whose rest has not come
  state        bytea  not null, -- of the session
  primary key (recording_id, n)
);
alter table recordings add column writer int not null default 0; -- counts those who have gone on with it; only the last may write
alter table recordings add column keep interval not null default '0'; -- for which nobody may be heard of a session before it has ended
drop index recordings_held;
alter table recordings drop column state, drop column state_until;
create index recordings_held on recordings (held) where ended_at is null;
