-- Owner: environment. That a host's id is not empty a prepared statement does not
-- know, so the index that left out the empty ones was never used: every status
-- read all environments.
drop index environments_host;
create index environments_host on environments (host_id);
