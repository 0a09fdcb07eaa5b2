-- Owner: environment. As for host_events.
create index environment_events_at on environment_events using brin (at);
