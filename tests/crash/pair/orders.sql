-- The same text for every kind of database.
create table if not exists orders (
    order_id  text primary key,
    user_id   text not null,
    amount    numeric not null,
    status    text not null default 'placed',
    sequence  integer not null default 1,
    placed_at timestamp not null default current_timestamp  -- UTC
);

-- Every OrderStatusChanged as it was received. Nothing here is unique on purpose: an effect done twice has
-- to show up as a second row, not hide behind an error.
create table if not exists order_history (
    order_id  text not null,
    sequence  integer not null,
    status    text not null,
    number    integer not null  -- how many there were of this order when it was written
);

create index if not exists order_history_by_order on order_history (order_id);
