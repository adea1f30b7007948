-- Steps and timers. Only adds: programs of version 1 do not look here.

-- Results of steps, until their delivery is applied.
create table eventkeel_journal (
  consumer integer not null,
  event_id uuid not null,
  step text not null,
  result bytea not null,
  at double precision not null,
  primary key (event_id, consumer, step)
);

-- Events that were published for later, as the outbox will take them.
create table eventkeel_timer (
  number bigint generated always as identity (cache 1) primary key,
  event_id uuid not null unique,
  topic text not null,
  key bytea not null,
  headers bytea not null,
  body bytea not null,
  due double precision not null
);
create index eventkeel_timer_due on eventkeel_timer (due, number);
