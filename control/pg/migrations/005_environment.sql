-- environment: nothing yet
select 1;
