-- Lists of hosts are searched by model: there are few, and the index jumps from
-- one to the next.
create index gpus_name on gpus (name);
