-- host: nothing yet
select 1;
