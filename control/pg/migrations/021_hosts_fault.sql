-- Owner: host. Why a host can start and stop nothing, in its own words.
alter table hosts add column fault text not null default '';
