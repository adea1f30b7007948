-- What Eventkeel keeps beside a service's own tables. Ids of events are 16 bytes, times Unix seconds.

create table if not exists eventkeel_meta (
  name text primary key,
  value text not null
) without rowid;

create table if not exists eventkeel_consumer (
  id integer primary key,
  name text not null unique,
  handles text not null default '',  -- topic/type pairs, separated by spaces
  retired integer not null default 0  -- 1 since a start of the service that did not have it any more
);

-- Ids already handled. state: 0 applied, 1 parked, 2 dead, 3 skipped, 4 conflict.
-- Rows lie in the order in which they came: ids made from an identity are random, and a table ordered by
-- them would touch a page for each; so only the narrow index does. Purging reads from the old end.
create table if not exists eventkeel_inbox (
  id integer primary key,
  consumer integer not null,
  event_id blob not null,
  state integer not null default 0,
  topic text not null,
  partition integer not null,
  position integer not null,
  epoch integer not null,
  fingerprint blob,
  at real not null
);
create unique index if not exists eventkeel_inbox_event on eventkeel_inbox (event_id, consumer);

create table if not exists eventkeel_outbox (
  id integer primary key autoincrement,
  event_id blob not null,
  topic text not null,
  key blob not null,
  headers blob not null,
  body blob not null,
  at real not null,
  stuck text  -- why the broker will never take it
);
create index if not exists eventkeel_outbox_stuck on eventkeel_outbox (topic, key) where stuck is not null;

-- The judge: who owns which partition (or outbox shard), under which epoch, and where it goes on.
create table if not exists eventkeel_owner (
  grp text not null,
  topic text not null,
  partition integer not null,
  generation integer not null,
  owner text not null default '',
  epoch integer not null default 0,
  position integer,
  incarnation text not null default '',
  until real not null default 0,
  primary key (grp, topic, partition, generation)
) without rowid;

create table if not exists eventkeel_member (
  grp text not null,
  member text not null,
  until real not null,
  primary key (grp, member)
) without rowid;

-- A key that waits. state: waiting (its head is due at due), blocked (its head is dead).
create table if not exists eventkeel_gate (
  consumer integer not null,
  topic text not null,
  key blob not null,
  state text not null,
  due real not null,
  attempts integer not null default 0,
  reason text not null default '',
  owner text not null default '',
  epoch integer not null default 0,
  until real not null default 0,
  primary key (consumer, topic, key)
) without rowid;
create index if not exists eventkeel_gate_due on eventkeel_gate (due) where state = 'waiting';
create index if not exists eventkeel_gate_leased on eventkeel_gate (until) where owner <> '';

-- Deliveries kept: parked, dead, conflict. queued: 1 where it has its place in its key's queue.
create table if not exists eventkeel_held (
  number integer primary key autoincrement,
  consumer integer not null,
  topic text not null,
  partition integer not null,
  generation integer not null,
  position integer not null,
  key blob,
  event_id blob not null,
  state text not null,
  queued integer not null,
  headers blob not null,
  body blob,
  time real not null,
  type text not null,
  fingerprint blob,
  attempts integer not null,
  reason text not null,
  error text not null,
  first_failed real not null,
  last_failed real not null
);
create index if not exists eventkeel_held_key on eventkeel_held (consumer, topic, key, number) where queued;
create index if not exists eventkeel_held_state on eventkeel_held (state, number);

-- Starts of deliveries that may kill their process.
create table if not exists eventkeel_attempt (
  consumer integer not null,
  event_id blob not null,
  starts integer not null,
  at real not null,
  primary key (consumer, event_id)
) without rowid;

-- What operators did.
create table if not exists eventkeel_audit (
  id integer primary key autoincrement,
  at real not null,
  actor text not null,
  action text not null,
  number integer not null,
  consumer text not null,
  event_id blob not null,
  note text not null default ''
);

-- Results of steps, until their delivery is applied.
create table if not exists eventkeel_journal (
  consumer integer not null,
  event_id blob not null,
  step text not null,
  result blob not null,
  at real not null,
  primary key (event_id, consumer, step)
) without rowid;

-- Events that were published for later, as the outbox will take them.
create table if not exists eventkeel_timer (
  number integer primary key autoincrement,
  event_id blob not null unique,
  topic text not null,
  key blob not null,
  headers blob not null,
  body blob not null,
  due real not null
);
create index if not exists eventkeel_timer_due on eventkeel_timer (due, number);
