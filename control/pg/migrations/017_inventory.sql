-- Owner: host. What a host says of itself with every connection is mostly what
-- it said before: the digest tells without writing it all again.
alter table hosts add column inventory bytea not null default ''; -- SHA-256 of the inventory that was kept; empty: look at it whole
