-- Owner: host. A list of hosts counts the GPUs of each that are not well: mostly
-- none, so the index is next to empty.
create index gpus_bad on gpus (host_id) where not (healthy and present);
