-- Owner: host. Old events are looked for every hour; this index costs next to
-- nothing to write.
create index host_events_at on host_events using brin (at);
