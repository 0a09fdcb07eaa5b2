-- Lists are searched in memory.
drop index gpus_name;
