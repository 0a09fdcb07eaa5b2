-- scheduler: nothing yet
select 1;
