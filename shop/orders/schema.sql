-- One row per order: what is known of it (shop/orders/process.py). The same text for every kind of database.
create table if not exists orders (
    order_id   text primary key,
    user_id    text not null default '',
    amount     numeric not null default 0,
    items      text not null default '[]',          -- JSON
    status     text not null default 'unheard',
    sequence   integer not null default 0,          -- how many changes of its status were said
    stock      text not null default '',
    money      text not null default '',
    shipment   text not null default '',
    ending     text not null default '',
    reason     text not null default '',
    timer      text not null default '',            -- id of the timeout that is running
    placed_at  timestamp not null default current_timestamp,  -- UTC
    changed_at timestamp not null default current_timestamp   -- UTC
);

create index if not exists orders_by_time on orders (placed_at, order_id);

-- Every OrderStatusChanged as it was received. Nothing here is unique on purpose: an effect done twice has
-- to show up as a second row, not hide behind an error.
create table if not exists order_history (
    order_id  text not null,
    sequence  integer not null,
    status    text not null,
    reason    text not null,
    number    integer not null,  -- how many there were of this order when it was written
    at        timestamp not null default current_timestamp  -- UTC
);

create index if not exists order_history_by_order on order_history (order_id);

-- What was answered to a POST with an Idempotency-Key, written in the transaction of its effects.
create table if not exists answers (
    idempotency_key text primary key,
    request         text not null,             -- digest of what was asked
    status          integer not null default 0,
    location        text not null default '',
    body            text not null default '',
    at              timestamp not null default current_timestamp  -- UTC
);
