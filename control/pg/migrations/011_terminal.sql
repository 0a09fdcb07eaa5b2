-- What a browser shows once, within 30 s, to open the WebSocket of a terminal.
create table terminal_tickets (
    hash           bytea primary key, -- SHA-256; the ticket itself is not kept
    user_id        text not null,
    environment_id text not null,
    session        text not null,     -- ses_…
    expires_at     timestamptz not null
);
