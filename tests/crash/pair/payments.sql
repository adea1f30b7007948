-- One row per order. Nothing here is unique on purpose: that each order is paid once is Eventkeel's
-- promise, and a constraint would turn a second payment into an error where an outsider should see it.
create table if not exists payments (
    order_id  text not null,
    user_id   text not null,
    amount    numeric not null
);

create index if not exists payments_by_order on payments (order_id);
