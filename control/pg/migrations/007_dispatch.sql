-- dispatch: nothing yet
select 1;
