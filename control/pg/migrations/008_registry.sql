-- registry: nothing yet
select 1;
