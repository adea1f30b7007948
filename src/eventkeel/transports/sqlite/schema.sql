-- The broker's file. Every statement may be run again on a file that has it already.
-- A position is a message's place in its partition, from 0, without gaps. A message's id in the log is
-- slot * 2^40 + position, so one range of one b-tree is one partition.

create table if not exists topics (
    name text primary key,
    partitions integer not null,
    incarnation text not null  -- random: a topic that was deleted and made again is another one
) without rowid;

create table if not exists partitions (
    slot integer primary key autoincrement,  -- never used twice
    topic text not null references topics (name) on delete cascade,
    partition integer not null,
    next integer not null default 0,  -- the position that the next message gets
    unique (topic, partition)
);

create table if not exists log (
    id integer primary key,
    key blob,
    headers blob not null,  -- MessagePack: [[name, bytes], ...]
    body blob,  -- null: a tombstone
    time real not null  -- unix seconds
);

create table if not exists groups (
    name text primary key,
    store_id text not null  -- the one store that consumes under this name
) without rowid;

create table if not exists subscriptions (
    grp text not null references groups (name) on delete cascade,
    topic text not null references topics (name) on delete cascade,
    primary key (grp, topic)
) without rowid;

-- A hint for people and for retention. The consumer's own store is the judge.
create table if not exists progress (
    grp text not null,
    topic text not null references topics (name) on delete cascade,
    partition integer not null,
    position integer not null,  -- all before it are finished
    primary key (grp, topic, partition)
) without rowid;

-- The door for programs without Eventkeel:
--   insert into inbound (topic, key, headers, body) values ('order_events', 'ORD1', '{"content-type": "application/json"}', '{...}');
-- Any running service moves such rows into the log. No column has a type, so nothing is refused here.
create table if not exists inbound (
    id integer primary key autoincrement,
    topic,
    key,
    headers,
    body
);

create view if not exists messages as
select p.topic, p.partition, l.id - (p.slot << 40) as position,
       cast(l.key as text) as key, cast(l.body as text) as body,
       strftime('%Y-%m-%d %H:%M:%f', l.time, 'unixepoch') as time, l.id
from partitions p join log l on l.id >= p.slot << 40 and l.id < (p.slot + 1) << 40;
