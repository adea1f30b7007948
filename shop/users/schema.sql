create table if not exists users (
    user_id       text primary key,
    name          text not null,
    email         text not null,
    registered_at timestamp not null default current_timestamp  -- UTC
);
