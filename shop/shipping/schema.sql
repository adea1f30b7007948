-- Nothing here is unique on purpose: a parcel sent twice has to show up as a second row, not hide behind an error.
create table if not exists shipments (
    order_id text not null,
    tracking text not null,
    state    text not null  -- booked, recalled
);

create index if not exists shipments_by_order on shipments (order_id);
