create table if not exists addresses (
    user_id text primary key,
    name    text not null,
    email   text not null
);

-- The mails that were sent. Nothing here is unique on purpose: a mail written down twice has to show up as a second
-- row, not hide behind an error.
create table if not exists mails (
    mail_id text not null,
    "to"    text not null,
    subject text not null,
    sent_at timestamp not null default current_timestamp  -- UTC
);

create index if not exists mails_by_id on mails (mail_id);
