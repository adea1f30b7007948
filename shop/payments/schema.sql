-- One row per order: how far its money is.
create table if not exists charges (
    order_id  text primary key,
    user_id   text not null default '',
    amount    numeric not null default 0,
    state     text not null,                   -- asked, paid, declined, void, refunded
    give_back boolean not null default false   -- wanted back, perhaps before it was paid
);

-- The money that moved: what was taken is above 0, what was given back below. Nothing here is unique on purpose: a
-- payment made twice has to show up as a second row, not hide behind an error.
create table if not exists payments (
    order_id  text not null,
    user_id   text not null,
    amount    numeric not null
);

create index if not exists payments_by_order on payments (order_id);
