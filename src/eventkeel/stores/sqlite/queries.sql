-- name: fence
select epoch from eventkeel_owner where grp = ? and topic = ? and partition = ? and generation = ?

-- name: any_gate
select 1 from eventkeel_gate limit 1

-- name: gate_of
select ?5 from eventkeel_gate where topic = ?1 and key = ?2 and consumer in (?3, ?4) limit 1

-- name: gate_exists
select 1 from eventkeel_gate where topic = ? and key = ? and consumer = ?

-- name: known
select fingerprint from eventkeel_inbox where event_id = ? and consumer in (?, ?)

-- name: claim
insert into eventkeel_inbox (consumer, event_id, topic, partition, position, epoch, fingerprint, at)
values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing

-- name: claimed
select event_id from eventkeel_inbox order by id desc limit ?

-- name: unclaim
delete from eventkeel_inbox where event_id = ? and consumer = ? and state = 0

-- name: forget
delete from eventkeel_inbox where event_id = ? and consumer = ?

-- name: remember
insert into eventkeel_inbox (consumer, event_id, state, topic, partition, position, epoch, fingerprint, at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing returning event_id

-- name: set_state
update eventkeel_inbox set state = ?, at = ? where event_id = ? and consumer = ?

-- name: append
insert into eventkeel_outbox (event_id, topic, key, headers, body, at) values (?, ?, ?, ?, ?, ?)

-- name: schedule
insert into eventkeel_timer (event_id, topic, key, headers, body, due) values (?, ?, ?, ?, ?, ?) on conflict do nothing

-- name: cancel
delete from eventkeel_timer where event_id = ? returning 1

-- name: due_timers
select number, event_id, topic, key, headers, body from eventkeel_timer where due <= ? order by due, number limit ?

-- name: drop_timer
delete from eventkeel_timer where number = ?

-- name: next_timer
select min(due) from eventkeel_timer

-- name: recall
select step, result from eventkeel_journal where event_id = ? and consumer = ?

-- name: journal
insert into eventkeel_journal (event_id, consumer, step, result, at) values (?, ?, ?, ?, ?) on conflict do nothing

-- name: journalled
select result from eventkeel_journal where event_id = ? and consumer = ? and step = ?

-- name: forget_steps
delete from eventkeel_journal where event_id = ? and consumer = ?

-- name: count_queued
select count(*) from (
  select 1 from eventkeel_held where consumer = ? and topic = ? and key = ? and queued limit ?)

-- name: open_gate
insert into eventkeel_gate (consumer, topic, key, state, due, attempts, reason) values (?, ?, ?, ?, ?, ?, ?)
on conflict do nothing

-- name: hold
insert into eventkeel_held (consumer, topic, partition, generation, position, key, event_id, state, queued, headers,
  body, time, type, fingerprint, attempts, reason, error, first_failed, last_failed)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: gate_ours
select 1 from eventkeel_gate where consumer = ? and topic = ? and key = ? and epoch = ? and owner <> ''

-- name: hold_gate
update eventkeel_gate set until = ? where consumer = ? and topic = ? and key = ? and epoch = ? and owner <> ''
returning 1

-- name: drop_held
delete from eventkeel_held where number = ?

-- name: pop_held
delete from eventkeel_held where number = ? and state = 'parked' returning 1

-- name: next_state
select state, attempts, reason from eventkeel_held
where consumer = ? and topic = ? and key = ? and queued order by number limit 1

-- name: drop_gate
delete from eventkeel_gate where consumer = ? and topic = ? and key = ?

-- name: retry_held
update eventkeel_held set attempts = ?, reason = ?, error = ?, last_failed = ?
where number = ? and state = 'parked' returning 1

-- name: kill_held
update eventkeel_held set state = 'dead', queued = ?, attempts = ?, reason = ?, error = ?, last_failed = ?
where number = ? and state = 'parked' returning 1

-- name: set_gate
update eventkeel_gate set state = ?, due = ?, attempts = ?, reason = ?, owner = '', until = 0
where consumer = ? and topic = ? and key = ?

-- name: let_gate_go
update eventkeel_gate set owner = '', until = 0 where consumer = ? and topic = ? and key = ?

-- name: mark_attempt
insert into eventkeel_attempt (consumer, event_id, starts, at) values (?, ?, 1, ?)
on conflict do update set starts = starts + 1, at = excluded.at returning starts

-- name: clear_attempt
delete from eventkeel_attempt where consumer = ? and event_id = ?

-- name: owner
select owner, epoch, position, incarnation, until from eventkeel_owner
where grp = ? and topic = ? and partition = ? and generation = ?

-- name: take
insert into eventkeel_owner (grp, topic, partition, generation, owner, epoch, until) values (?, ?, ?, ?, ?, ?, ?)
on conflict do update set owner = excluded.owner, epoch = excluded.epoch, until = excluded.until

-- name: alive
insert into eventkeel_member (grp, member, until) values (?, ?, ?)
on conflict do update set until = excluded.until

-- name: bury_members
delete from eventkeel_member where grp = ? and until < ?

-- name: members
-- alive: until lies ahead, but not so far that the clock must have been put back since
select member from eventkeel_member where grp = ? and until > ? and until < ? order by member

-- name: leave
delete from eventkeel_member where grp = ? and member = ?

-- name: free
update eventkeel_owner set owner = '', until = 0 where grp = ? and owner = ?

-- name: renew
update eventkeel_owner set until = ? where grp = ? and topic = ? and partition = ? and generation = ?
and owner = ? and epoch = ? returning 1

-- name: owners
select topic, partition, generation, owner, epoch, until, position from eventkeel_owner where grp = ?
order by topic, partition, generation

-- name: progress
update eventkeel_owner set
  position = case when ?1 is null or (position > ?1 and (?2 in ('', incarnation) or incarnation = '')) then position
    else ?1 end,
  incarnation = case when ?2 = '' or ?1 is null then incarnation else ?2 end
where grp = ?3 and topic = ?4 and partition = ?5 and generation = ?6 and epoch = ?7 returning 1

-- name: release
update eventkeel_owner set owner = '', until = 0
where grp = ? and topic = ? and partition = ? and generation = ? and epoch = ?

-- name: unsent
select id, 0, topic, key, headers, body from eventkeel_outbox o
where stuck is null and not exists (
  select 1 from eventkeel_outbox s where s.stuck is not null and s.topic = o.topic and s.key = o.key and s.id < o.id)
order by id limit ?

-- name: unsent_places
select id, topic, key, stuck is not null from eventkeel_outbox order by id

-- name: unsent_one
select id, 0, topic, key, headers, body from eventkeel_outbox where id = ?

-- name: sent_range
delete from eventkeel_outbox where id between ? and ?

-- name: sent_each
delete from eventkeel_outbox where id = ?

-- name: stuck
update eventkeel_outbox set stuck = ? where id = ?

-- name: due
select g.consumer, g.topic, g.key, g.owner from eventkeel_gate g
where g.state = 'waiting' and g.due <= ?1 and g.consumer in (select value from json_each(?3)) and (g.owner = '' or g.until <= ?1
  or g.until > ?4 or g.owner not in (select member from eventkeel_member where until > ?1))
order by g.due limit ?2

-- name: lease_gate
update eventkeel_gate set owner = ?, until = ?, epoch = epoch + 1 where consumer = ? and topic = ? and key = ?
returning epoch

-- name: head
select number, topic, partition, generation, position, key, event_id, state, headers, body, time, type, fingerprint,
  attempts, reason, error
from eventkeel_held where consumer = ? and topic = ? and key = ? and queued order by number limit 1

-- name: next_due
select min(at) from (
  select * from (
    select due as at from eventkeel_gate
    where state = 'waiting' and owner = '' and +consumer in (select value from json_each(?1)) order by due limit 1)
  union all
  select coalesce((select min(g.until, max(m.until)) from eventkeel_member m where m.member = g.owner), g.due)
  from eventkeel_gate g
  where g.state = 'waiting' and g.owner <> '' and +g.consumer in (select value from json_each(?1)))

-- name: inbox_ages
select id, state, at from eventkeel_inbox order by id

-- name: purge
delete from eventkeel_inbox where id = ? and state in (0, 3) and at < ?

-- name: purge_attempts
delete from eventkeel_attempt where at < ?

-- name: purge_steps
-- not those of a delivery that is parked or dead: a redrive goes on from them
delete from eventkeel_journal where at < ? and not exists (
  select 1 from eventkeel_inbox i where i.event_id = eventkeel_journal.event_id
  and i.consumer = eventkeel_journal.consumer and i.state in (1, 2))

-- name: consumers
select id, name, handles, retired from eventkeel_consumer

-- name: add_consumer
insert into eventkeel_consumer (name, handles) values (?, ?)
on conflict (name) do update set handles = excluded.handles, retired = 0

-- name: retire_consumer
update eventkeel_consumer set retired = 1 where name = ?

-- name: get_meta
select value from eventkeel_meta where name = ?

-- name: put_meta
insert into eventkeel_meta (name, value) values (?, ?) on conflict do nothing

-- name: letters
select h.number, h.state, c.name, h.event_id, h.topic, h.partition, h.position, h.key, h.type, h.reason, h.error,
  h.attempts, h.first_failed, h.last_failed,
  case when h.queued then (select count(*) from eventkeel_held b where b.consumer = h.consumer and b.topic = h.topic
    and b.key = h.key and b.queued and b.number > h.number) else 0 end,
  h.headers, h.body, h.queued, h.consumer
from eventkeel_held h join eventkeel_consumer c on c.id = h.consumer
where h.number > ?1 and (?2 is null or c.name = ?2)
  and (h.state = ?3 or (?3 is null and h.state in ('dead', 'conflict')))
order by h.number limit ?4

-- name: letter
select h.number, h.state, c.name, h.event_id, h.topic, h.partition, h.position, h.key, h.type, h.reason, h.error,
  h.attempts, h.first_failed, h.last_failed,
  case when h.queued then (select count(*) from eventkeel_held b where b.consumer = h.consumer and b.topic = h.topic
    and b.key = h.key and b.queued and b.number > h.number) else 0 end,
  h.headers, h.body, h.queued, h.consumer
from eventkeel_held h join eventkeel_consumer c on c.id = h.consumer where h.number = ?

-- name: revive
update eventkeel_held set state = 'parked', queued = 1, attempts = 0, last_failed = ?
where number = ? and state = 'dead' returning 1

-- name: reopen_gate
insert into eventkeel_gate (consumer, topic, key, state, due, epoch) values (?, ?, ?, 'waiting', ?, 1)
on conflict do update set state = 'waiting', due = excluded.due, attempts = 0, owner = '', until = 0, epoch = epoch + 1

-- name: first_queued
select number from eventkeel_held where consumer = ? and topic = ? and key = ? and queued order by number limit 1

-- name: audit
insert into eventkeel_audit (at, actor, action, number, consumer, event_id, note) values (?, ?, ?, ?, ?, ?, ?)

-- name: waiting
select c.name, g.topic, g.key, g.state, (select count(*) from eventkeel_held b where b.consumer = g.consumer
  and b.topic = g.topic and b.key = g.key and b.queued), g.attempts, g.due, g.reason
from eventkeel_gate g join eventkeel_consumer c on c.id = g.consumer
order by c.name, g.topic, g.key limit ? offset ?

-- name: lag
select (select count(*) from eventkeel_outbox), (select min(at) from eventkeel_outbox),
  (select count(*) from eventkeel_gate where state = 'waiting'),
  (select count(*) from eventkeel_gate where state = 'blocked'),
  (select count(*) from eventkeel_held where state = 'parked'),
  (select count(*) from eventkeel_held where state in ('dead', 'conflict'))

-- name: stuck_rows
select id, topic, key, stuck from eventkeel_outbox where stuck is not null order by id limit 100
