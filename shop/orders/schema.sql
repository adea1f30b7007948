create table if not exists orders (
    order_id  text primary key,
    user_id   text not null,
    amount    numeric not null,
    status    text not null default 'placed',
    sequence  integer not null default 1
);

-- Every OrderStatusChanged in the order in which it was received. Nothing here is unique on purpose:
-- an effect done twice has to show up as a second row, not hide behind an error.
create table if not exists order_history (
    number    integer primary key,
    order_id  text not null,
    sequence  integer not null,
    status    text not null
);

create index if not exists order_history_by_order on order_history (order_id, number);
