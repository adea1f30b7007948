-- What Eventkeel keeps beside a service's own tables, in the schema that the store's URL names.
-- Times are Unix seconds as the processes tell them.

create table eventkeel_meta (
  name text primary key,
  value text not null
);

create table eventkeel_consumer (
  id integer generated always as identity primary key,
  name text not null unique,
  handles text not null default '',  -- topic/type pairs, separated by spaces
  retired boolean not null default false  -- true since a start of the service that did not have it any more
);

-- Ids already handled. state: 0 applied, 1 parked, 2 dead, 3 skipped, 4 conflict.
-- tx: which transaction wrote it, so that an outsider can ask in which order they committed.
create table eventkeel_inbox (
  event_id uuid not null,
  consumer integer not null,
  state smallint not null default 0,
  partition integer not null,
  position bigint not null,
  epoch bigint not null,
  at double precision not null,
  tx xid8 not null default pg_current_xact_id(),
  topic text not null,
  fingerprint bytea,
  primary key (event_id, consumer)
);
create index eventkeel_inbox_at on eventkeel_inbox using brin (at);

create table eventkeel_outbox (
  id bigint generated always as identity (cache 1) primary key,
  event_id uuid not null,
  shard integer not null,
  topic text not null,
  key bytea not null,
  headers bytea not null,
  body bytea not null,
  at double precision not null,
  stuck text  -- why the broker will never take it
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
create index eventkeel_outbox_stuck on eventkeel_outbox (topic, key) where stuck is not null;

-- The judge: who owns which partition (or outbox shard), under which epoch, and where it goes on.
create table eventkeel_owner (
  grp text not null,
  topic text not null,
  partition integer not null,
  generation integer not null,
  owner text not null default '',
  epoch bigint not null default 0,
  position bigint,
  incarnation text not null default '',
  until double precision not null default 0,
  primary key (grp, topic, partition, generation)
) with (fillfactor = 50);

create table eventkeel_member (
  grp text not null,
  member text not null,
  until double precision not null,
  primary key (grp, member)
) with (fillfactor = 50);

-- A key that waits. state: waiting (its head is due at due), blocked (its head is dead).
create table eventkeel_gate (
  consumer integer not null,
  topic text not null,
  key bytea not null,
  state text not null,
  due double precision not null,
  attempts integer not null default 0,
  reason text not null default '',
  owner text not null default '',
  epoch bigint not null default 0,
  until double precision not null default 0,
  primary key (consumer, topic, key)
);
create index eventkeel_gate_due on eventkeel_gate (due) where state = 'waiting';

-- Deliveries kept: parked, dead, conflict. queued: true where it has its place in its key's queue.
create table eventkeel_held (
  number bigint generated always as identity (cache 1) primary key,
  consumer integer not null,
  topic text not null,
  partition integer not null,
  generation integer not null,
  position bigint not null,
  key bytea,
  event_id uuid not null,
  state text not null,
  queued boolean not null,
  headers bytea not null,
  body bytea,
  time double precision not null,
  type text not null,
  fingerprint bytea,
  attempts integer not null,
  reason text not null,
  error text not null,
  first_failed double precision not null,
  last_failed double precision not null
);
create index eventkeel_held_key on eventkeel_held (consumer, topic, key, number) where queued;
create index eventkeel_held_state on eventkeel_held (state, number);

-- Starts of deliveries that may kill their process.
create table eventkeel_attempt (
  consumer integer not null,
  event_id uuid not null,
  starts integer not null,
  at double precision not null,
  primary key (consumer, event_id)
);

-- What operators did.
create table eventkeel_audit (
  id bigint generated always as identity primary key,
  at double precision not null,
  actor text not null,
  action text not null,
  number bigint not null,
  consumer text not null,
  event_id uuid not null,
  note text not null default ''
);
