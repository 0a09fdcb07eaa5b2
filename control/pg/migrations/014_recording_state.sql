-- Of a recording whose server was stopped while its session went on: which
-- client's it is, and where it stood, for the server after it.
alter table recordings add column held text not null default '';
alter table recordings add column state bytea;             -- null: nobody can go on with it
alter table recordings add column state_until timestamptz; -- when it has ended all the same
create index recordings_held on recordings (held) where state is not null;
