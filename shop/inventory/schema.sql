create table if not exists stock (
    sku     text primary key,
    title   text not null,
    price   numeric not null,
    initial integer not null,
    free    integer not null check (free >= 0),
    held    integer not null default 0 check (held >= 0),
    sold    integer not null default 0 check (sold >= 0)
);

insert into stock (sku, title, price, initial, free) values
    ('mug', 'Mug', 7.00, 1000000, 1000000),
    ('cap', 'Cap', 12.00, 1000000, 1000000),
    ('lamp', 'Desk lamp', 39.00, 500, 500),
    ('print', 'Signed print', 95.00, 10, 10),
    ('anvil', 'Anvil', 240.00, 1000, 1000)
on conflict (sku) do nothing;

-- What was taken from the shelves for an order: one row for each line of it. Nothing here is unique on purpose: an
-- effect done twice has to show up as a second row, not hide behind an error.
create table if not exists reservations (
    order_id text not null,
    line     integer not null,
    sku      text not null,
    quantity integer not null,
    state    text not null  -- held, sold, released
);

create index if not exists reservations_by_order on reservations (order_id);
