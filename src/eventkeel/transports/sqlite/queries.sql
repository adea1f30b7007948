-- name: topics
select name, partitions, incarnation from topics;

-- name: forget_partitions
-- left behind where somebody deleted a topic with foreign keys off
delete from partitions where topic = ?;

-- name: forget_progress
delete from progress where topic = ?;

-- name: add_topic
insert into topics (name, partitions, incarnation) values (?, ?, ?);

-- name: add_partition
insert into partitions (topic, partition) values (?, ?);

-- name: group_store
select store_id from groups where name = ?;

-- name: add_group
insert into groups (name, store_id) values (?, ?);

-- name: has_subscription
select count(*) from subscriptions where grp = ? and topic = ?;

-- name: add_subscription
insert into subscriptions (grp, topic) values (?, ?);

-- name: slots
-- of the topics in a JSON list
select topic, partition, slot, next from partitions
where topic in (select value from json_each(?)) order by topic, partition;

-- name: advance
-- a JSON object of slots and their next positions
update partitions set next = j.value from json_each(?) as j where partitions.slot = cast(j.key as integer);

-- name: settle
insert into progress (grp, topic, partition, position)
select :grp, name, :partition, :position from topics where name = :topic and incarnation = :incarnation
on conflict do update set position = max(position, excluded.position);

-- name: ends
-- of the slots in a JSON list
select p.slot, p.next from partitions p join topics t on t.name = p.topic
where p.slot in (select value from json_each(?));

-- name: place
select p.slot, p.next, t.incarnation, t.partitions,
       (select id from log where id >= p.slot << 40 and id < (p.slot + 1) << 40 order by id limit 1) as first
from partitions p join topics t on t.name = p.topic where p.topic = ? and p.partition = ?;

-- name: page
-- as bytes whatever somebody may have written there by hand: one senseless row must not stop its readers
select id, cast(key as blob), cast(headers as blob), cast(body as blob), cast(time as real) from log where id >= ? and id < ? order by id limit ?;

-- name: lag
select p.topic, p.partition, g.position, p.next, t.incarnation,
       (select time from log where id >= (p.slot << 40) + coalesce(g.position, 0) and id < (p.slot + 1) << 40
        order by id limit 1) as oldest
from subscriptions s
join topics t on t.name = s.topic
join partitions p on p.topic = s.topic
left join progress g on g.grp = s.grp and g.topic = p.topic and g.partition = p.partition
where s.grp = ? order by p.topic, p.partition;

-- name: newest_slot
select coalesce(max(slot), 0) from partitions;

-- name: inbound_waits
select exists (select 1 from inbound where id > ?);

-- name: inbound_rows
-- everything as bytes, so that text which is not UTF-8 can be read; a body that is too large is not read at all
select id, cast(topic as blob), cast(key as blob), cast(headers as blob),
       case when octet_length(body) > :largest then null else cast(body as blob) end,
       coalesce(octet_length(body), 0) + coalesce(octet_length(key), 0) + coalesce(octet_length(headers), 0)
from inbound where id > :after order by id limit :limit;

-- name: inbound_remove
-- a JSON list of ids
delete from inbound where id in (select value from json_each(?));
