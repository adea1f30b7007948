create table if not exists accounts (
    user_id text primary key,
    points  integer not null
);

-- Why an account has its points. Nothing here is unique on purpose: points given twice have to show up as a second
-- row, not hide behind an error.
create table if not exists entries (
    user_id  text not null,
    order_id text not null,  -- empty: welcome
    points   integer not null
);

create index if not exists entries_by_order on entries (order_id);
