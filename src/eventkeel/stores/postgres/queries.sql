-- name: locks
-- one after another, in the order of the array: whoever takes several takes them sorted
select count(pg_advisory_xact_lock(k)) from unnest($1::int8[]) as k

-- name: shared_locks
select count(pg_advisory_xact_lock_shared(k)) from unnest($1::int8[]) as k

-- name: fence
select s.n from unnest($2::text[], $3::int4[], $4::int4[], $5::int8[]) with ordinality
  as s (topic, partition, generation, epoch, n)
where not exists (select 1 from eventkeel_owner o where o.grp = $1::text and o.topic = s.topic
  and o.partition = s.partition and o.generation = s.generation and o.epoch = s.epoch)

-- name: claim
with c as materialized (
  select t.event_id, t.position, t.key, t.fingerprint, t.n,
    ($7::text[])[t.s] as topic, ($8::int4[])[t.s] as partition, ($9::int8[])[t.s] as epoch
  from unnest($2::uuid[], $3::int4[], $4::int8[], $5::bytea[], $6::bytea[]) with ordinality
    as t (event_id, s, position, key, fingerprint, n)),
w as materialized (
  select c.n from c join eventkeel_gate g on g.topic = c.topic and g.key = c.key
  where g.consumer in ($1::int4, $10::int4)),
i as (
  insert into eventkeel_inbox (event_id, consumer, topic, partition, position, epoch, fingerprint, at)
  select c.event_id, $1::int4, c.topic, c.partition, c.position, c.epoch, c.fingerprint, $11::float8
  from c where c.n not in (select w.n from w) order by c.event_id, c.n
  on conflict do nothing returning event_id)
select count(*)::int8, case when count(*) < cardinality($2::uuid[]) then array_agg(i.event_id) end,
  (select array_agg(distinct w.n) from w)
from i

-- name: known
select event_id, fingerprint, consumer from eventkeel_inbox
where event_id = any($1::uuid[]) and consumer in ($2::int4, $3::int4)

-- name: unclaim
delete from eventkeel_inbox where event_id = any($1::uuid[]) and consumer = $2::int4 and state = 0

-- name: forget
delete from eventkeel_inbox where event_id = $1::uuid and consumer = $2::int4

-- name: remember
insert into eventkeel_inbox (consumer, event_id, state, topic, partition, position, epoch, fingerprint, at)
values ($1::int4, $2::uuid, $3::int2, $4::text, $5::int4, $6::int8, $7::int8, $8::bytea, $9::float8)
on conflict do nothing returning 1

-- name: set_state
update eventkeel_inbox set state = $1::int2, at = $2::float8 where event_id = $3::uuid and consumer = $4::int4

-- name: append
insert into eventkeel_outbox (event_id, shard, topic, key, headers, body, at)
select r.event_id, r.shard, ($3::text[])[r.t], r.key, r.headers, r.body, $7::float8
from unnest($1::uuid[], $2::int4[], $8::int4[], $4::bytea[], $5::bytea[], $6::bytea[]) with ordinality
  as r (event_id, shard, t, key, headers, body, n) order by r.n

-- name: schedule
insert into eventkeel_timer (event_id, topic, key, headers, body, due)
select r.event_id, r.topic, r.key, r.headers, r.body, r.due
from unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::float8[]) with ordinality
  as r (event_id, topic, key, headers, body, due, n) order by r.n
on conflict do nothing

-- name: cancel
delete from eventkeel_timer where event_id = $1::uuid returning 1

-- name: try_lock
select pg_try_advisory_xact_lock($1::int8)

-- name: due_timers
-- without those that are being cancelled: who waited for the end of that would wait in everybody's way
select number, event_id, topic, key, headers, body from eventkeel_timer where due <= $1::float8
order by due, number limit $2::int4 for update skip locked

-- name: drop_timers
delete from eventkeel_timer where number = any($1::int8[])

-- name: next_timer
select min(due) from eventkeel_timer

-- name: recall
select step, result from eventkeel_journal where event_id = $1::uuid and consumer = $2::int4

-- name: journal
insert into eventkeel_journal (event_id, consumer, step, result, at)
values ($1::uuid, $2::int4, $3::text, $4::bytea, $5::float8) on conflict do nothing

-- name: journalled
select result from eventkeel_journal where event_id = $1::uuid and consumer = $2::int4 and step = $3::text

-- name: forget_steps
delete from eventkeel_journal where event_id = $1::uuid and consumer = $2::int4

-- name: lock_gate
select 1 from eventkeel_gate where topic = $1::text and key = $2::bytea and consumer = $3::int4 for update

-- name: count_queued
select count(*) from (
  select 1 from eventkeel_held where consumer = $1::int4 and topic = $2::text and key = $3::bytea and queued
  limit $4::int4) as q

-- name: open_gate
-- where there is one it is locked: whoever deletes it now has to be waited for, or what is kept would lie behind none
insert into eventkeel_gate as g (consumer, topic, key, state, due, attempts, reason)
values ($1::int4, $2::text, $3::bytea, $4::text, $5::float8, $6::int4, $7::text)
on conflict (consumer, topic, key) do update set state = g.state

-- name: hold
insert into eventkeel_held (consumer, topic, partition, generation, position, key, event_id, state, queued, headers,
  body, time, type, fingerprint, attempts, reason, error, first_failed, last_failed)
values ($1::int4, $2::text, $3::int4, $4::int4, $5::int8, $6::bytea, $7::uuid, $8::text, $9::boolean, $10::bytea,
  $11::bytea, $12::float8, $13::text, $14::bytea, $15::int4, $16::text, $17::text, $18::float8, $18::float8)

-- name: gate_ours
select 1 from eventkeel_gate where consumer = $1::int4 and topic = $2::text and key = $3::bytea
and epoch = $4::int8 and owner <> ''

-- name: lock_gate_ours
select 1 from eventkeel_gate where consumer = $1::int4 and topic = $2::text and key = $3::bytea
and epoch = $4::int8 and owner <> '' for update

-- name: hold_gate
update eventkeel_gate set until = $1::float8 where consumer = $2::int4 and topic = $3::text and key = $4::bytea
and epoch = $5::int8 and owner <> '' returning 1

-- name: drop_held
delete from eventkeel_held where number = $1::int8

-- name: pop_held
delete from eventkeel_held where number = $1::int8 and state = 'parked' returning 1

-- name: next_state
select state, attempts, reason from eventkeel_held
where consumer = $1::int4 and topic = $2::text and key = $3::bytea and queued order by number limit 1

-- name: drop_gate
delete from eventkeel_gate where consumer = $1::int4 and topic = $2::text and key = $3::bytea

-- name: retry_held
update eventkeel_held set attempts = $1::int4, reason = $2::text, error = $3::text, last_failed = $4::float8
where number = $5::int8 and state = 'parked' returning 1

-- name: kill_held
update eventkeel_held set state = 'dead', queued = $1::boolean, attempts = $2::int4, reason = $3::text,
  error = $4::text, last_failed = $5::float8
where number = $6::int8 and state = 'parked' returning 1

-- name: set_gate
update eventkeel_gate set state = $1::text, due = $2::float8, attempts = $3::int4, reason = $4::text, owner = '',
  until = 0
where consumer = $5::int4 and topic = $6::text and key = $7::bytea

-- name: let_gate_go
update eventkeel_gate set owner = '', until = 0 where consumer = $1::int4 and topic = $2::text and key = $3::bytea

-- name: mark_attempt
insert into eventkeel_attempt as a (consumer, event_id, starts, at) values ($1::int4, $2::uuid, 1, $3::float8)
on conflict (consumer, event_id) do update set starts = a.starts + 1, at = excluded.at returning starts

-- name: clear_attempt
delete from eventkeel_attempt where consumer = $1::int4 and event_id = $2::uuid

-- name: owner
-- until: of the row, or of the member that has it, whichever is later: a renewal touches the member only
select o.owner, o.epoch, o.position, o.incarnation, greatest(o.until, coalesce(m.until, 0))
from eventkeel_owner o left join eventkeel_member m on m.grp = o.grp and m.member = o.owner
where o.grp = $1::text and o.topic = $2::text and o.partition = $3::int4 and o.generation = $4::int4

-- name: patience
select set_config('lock_timeout', $1::text, true)

-- name: take
insert into eventkeel_owner (grp, topic, partition, generation, owner, epoch, until)
values ($1::text, $2::text, $3::int4, $4::int4, $5::text, $6::int8, $7::float8)
on conflict (grp, topic, partition, generation) do update
set owner = excluded.owner, epoch = excluded.epoch, until = excluded.until

-- name: holders
-- who keeps a slice's fence and does nothing: a process that was stopped in the middle of a unit, perhaps in the
-- middle of what it sends or reads
select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.database = (
    select oid from pg_database where datname = current_database())
  and ((l.classid::int8 << 32) | l.objid::int8) = any($1::int8[]) and l.pid <> pg_backend_pid()
  and (a.state like 'idle in transaction%' or a.wait_event_type = 'Client') and a.state_change < clock_timestamp() - interval '3 seconds'

-- name: alive
insert into eventkeel_member (grp, member, until) values ($1::text, $2::text, $3::float8)
on conflict (grp, member) do update set until = excluded.until

-- name: bury_members
delete from eventkeel_member where grp = $1::text and until < $2::float8

-- name: members
-- alive: until lies ahead, but not so far that the clock must have been put back since
select member from eventkeel_member where grp = $1::text and until > $2::float8 and until < $3::float8
order by member collate "C"

-- name: leave
delete from eventkeel_member where grp = $1::text and member = $2::text

-- name: free
update eventkeel_owner set owner = '', until = 0 where grp = $1::text and owner = $2::text

-- name: owners
select o.topic, o.partition, o.generation, o.owner, o.epoch, greatest(o.until, coalesce(m.until, 0)), o.position
from eventkeel_owner o left join eventkeel_member m on m.grp = o.grp and m.member = o.owner
where o.grp = $1::text order by o.topic collate "C", o.partition, o.generation

-- name: progress
update eventkeel_owner set
  position = case when $1::int8 is null
      or (position > $1::int8 and ($2::text in ('', incarnation) or incarnation = '')) then position
    else $1::int8 end,
  incarnation = case when $2::text = '' or $1::int8 is null then incarnation else $2::text end,
  owner = case when $8::boolean then '' else owner end,
  until = case when $8::boolean then 0 else until end
where grp = $3::text and topic = $4::text and partition = $5::int4 and generation = $6::int4 and epoch = $7::int8
returning 1

-- name: unsent
select id, shard, topic, key, headers, body from eventkeel_outbox o
where shard = any($1::int4[]) and stuck is null and not exists (
  select 1 from eventkeel_outbox s where s.stuck is not null and s.topic = o.topic and s.key = o.key and s.id < o.id)
order by id limit $2::int4

-- name: unsent_heads
select id, shard, topic, key, headers, body from (
  select distinct on (topic, key) * from eventkeel_outbox where shard = any($1::int4[]) order by topic, key, id) as o
where stuck is null order by id limit $2::int4

-- name: sent
with mine as materialized (
  select o.partition from eventkeel_owner o
  join unnest($2::text[], $3::int4[], $4::int4[], $5::int8[]) as s (topic, partition, generation, epoch)
    on o.topic = s.topic and o.partition = s.partition and o.generation = s.generation and o.epoch = s.epoch
  where o.grp = $1::text),
gone as (delete from eventkeel_outbox where id = any($6::int8[]) and shard in (select partition from mine))
select array_agg(partition) from mine

-- name: stuck
update eventkeel_outbox set stuck = $7::text where id = $6::int8 and exists (
  select 1 from eventkeel_owner where grp = $1::text and topic = $2::text and partition = $3::int4
  and generation = $4::int4 and epoch = $5::int8)
returning 1

-- name: any_due
select 1 from eventkeel_gate where state = 'waiting' and due <= $1::float8 and consumer = any($2::int4[]) limit 1

-- name: due
select g.consumer, g.topic, g.key, g.owner from eventkeel_gate g
where g.state = 'waiting' and g.due <= $1::float8 and g.consumer = any($3::int4[]) and (g.owner = ''
  or g.until <= $1::float8 or g.until > $4::float8
  or g.owner not in (select member from eventkeel_member where until > $1::float8))
order by g.due limit $2::int4 for update of g skip locked

-- name: lease_gate
update eventkeel_gate set owner = $1::text, until = $2::float8, epoch = epoch + 1
where consumer = $3::int4 and topic = $4::text and key = $5::bytea returning epoch

-- name: head
select number, topic, partition, generation, position, key, event_id, state, headers, body, time, type, fingerprint,
  attempts, reason, error
from eventkeel_held where consumer = $1::int4 and topic = $2::text and key = $3::bytea and queued
order by number limit 1

-- name: next_due
select min(at) from (
  (select due as at from eventkeel_gate
    where state = 'waiting' and owner = '' and consumer = any($1::int4[]) order by due limit 1)
  union all
  select coalesce((select least(g.until, max(m.until)) from eventkeel_member m where m.member = g.owner), g.due)
  from eventkeel_gate g
  where g.state = 'waiting' and g.owner <> '' and g.consumer = any($1::int4[])) as d

-- name: purge
delete from eventkeel_inbox where ctid = any(array(
  select ctid from eventkeel_inbox where at < $1::float8 and state in (0, 3) limit $2::int4))
and at < $1::float8 and state in (0, 3)

-- name: purge_attempts
delete from eventkeel_attempt where at < $1::float8

-- name: purge_steps
-- not those of a delivery that is parked or dead: a redrive goes on from them
delete from eventkeel_journal j where at < $1::float8 and not exists (
  select 1 from eventkeel_inbox i where i.event_id = j.event_id and i.consumer = j.consumer and i.state in (1, 2))

-- name: consumers
select id, name, handles, retired from eventkeel_consumer

-- name: add_consumer
insert into eventkeel_consumer (name, handles) values ($1::text, $2::text)
on conflict (name) do update set handles = excluded.handles, retired = false

-- name: retire_consumer
update eventkeel_consumer set retired = true where name = $1::text

-- name: made
select to_regclass(format('%I.eventkeel_meta', $1::text)) is not null

-- name: schema_made
select exists (select 1 from pg_namespace where nspname = $1::text)

-- name: get_meta
select value from eventkeel_meta where name = $1::text

-- name: put_meta
insert into eventkeel_meta (name, value) values ($1::text, $2::text) on conflict do nothing

-- name: set_meta
insert into eventkeel_meta (name, value) values ($1::text, $2::text)
on conflict (name) do update set value = excluded.value

-- name: letters
select h.number, h.state, c.name, h.event_id, h.topic, h.partition, h.position, h.key, h.type, h.reason, h.error,
  h.attempts, h.first_failed, h.last_failed,
  case when h.queued then (select count(*) from eventkeel_held b where b.consumer = h.consumer and b.topic = h.topic
    and b.key = h.key and b.queued and b.number > h.number) else 0 end,
  h.headers, h.body, h.queued, h.consumer
from eventkeel_held h join eventkeel_consumer c on c.id = h.consumer
where h.number > $1::int8 and ($2::text is null or c.name = $2::text)
  and (h.state = $3::text or ($3::text is null and h.state in ('dead', 'conflict')))
order by h.number limit $4::int4

-- name: letter
select h.number, h.state, c.name, h.event_id, h.topic, h.partition, h.position, h.key, h.type, h.reason, h.error,
  h.attempts, h.first_failed, h.last_failed,
  case when h.queued then (select count(*) from eventkeel_held b where b.consumer = h.consumer and b.topic = h.topic
    and b.key = h.key and b.queued and b.number > h.number) else 0 end,
  h.headers, h.body, h.queued, h.consumer
from eventkeel_held h join eventkeel_consumer c on c.id = h.consumer where h.number = $1::int8

-- name: revive
update eventkeel_held set state = 'parked', queued = true, attempts = 0, last_failed = $1::float8
where number = $2::int8 and state = 'dead' returning 1

-- name: reopen_gate
insert into eventkeel_gate as g (consumer, topic, key, state, due, epoch)
values ($1::int4, $2::text, $3::bytea, 'waiting', $4::float8, 1)
on conflict (consumer, topic, key) do update
set state = 'waiting', due = excluded.due, attempts = 0, owner = '', until = 0, epoch = g.epoch + 1

-- name: first_queued
select number from eventkeel_held where consumer = $1::int4 and topic = $2::text and key = $3::bytea and queued
order by number limit 1

-- name: audit
insert into eventkeel_audit (at, actor, action, number, consumer, event_id, note)
values ($1::float8, $2::text, $3::text, $4::int8, $5::text, $6::uuid, $7::text)

-- name: waiting
select c.name, g.topic, g.key, g.state, (select count(*) from eventkeel_held b where b.consumer = g.consumer
  and b.topic = g.topic and b.key = g.key and b.queued), g.attempts, g.due, g.reason
from eventkeel_gate g join eventkeel_consumer c on c.id = g.consumer
order by c.name, g.topic, g.key limit $1::int4 offset $2::int4

-- name: lag
select (select count(*) from eventkeel_outbox), (select min(at) from eventkeel_outbox),
  (select count(*) from eventkeel_gate where state = 'waiting'),
  (select count(*) from eventkeel_gate where state = 'blocked'),
  (select count(*) from eventkeel_held where state = 'parked'),
  (select count(*) from eventkeel_held where state in ('dead', 'conflict'))

-- name: stuck_rows
select id, topic, key, stuck from eventkeel_outbox where stuck is not null order by id limit 100
