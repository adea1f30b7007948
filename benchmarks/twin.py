"""The native twin: the reference job by hand, straight down, with apsw. The practical limit.

The same rows as Eventkeel writes on two files (broker log, inbox, payments, outbox, broker log,
progress), the same settings, all syncs on, one process. No retries, leases, epochs, gates, routing,
lanes or observers: what a careful programmer would write for this one job.

    python -m benchmarks.twin [--messages N] [--batch N]
"""

from __future__ import annotations

import argparse
import time
import zlib
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw

from benchmarks.byhand import decode_order, encode_json, outgoing, pack, unpack
from benchmarks.job import GROUP, PARTITIONS, TOPIC_IN, TOPIC_OUT, Input, Run, Stopwatch, ask, folder, orders

BROKER = """
create table log (id integer primary key, key blob, headers blob not null, body blob, time real not null);
create table partitions (slot integer primary key, topic text, partition integer, next integer not null);
create table progress (grp text, topic text, partition integer, position integer,
    primary key (grp, topic, partition)) without rowid;
"""
STORE = """
create table payments (order_id text primary key, amount numeric not null);
create table inbox (consumer integer not null, event_id blob not null, state integer not null default 0,
    topic text not null, partition integer not null, position integer not null, at real not null,
    primary key (consumer, event_id)) without rowid;
create table outbox (id integer primary key autoincrement, event_id blob not null, topic text not null,
    key blob not null, headers blob not null, body blob not null, at real not null);
"""
CLAIM = """
insert into inbox (consumer, event_id, topic, partition, position, at)
select 1, unhex(value ->> 0), ?, ?, value ->> 1, ? from json_each(?)
where true on conflict do nothing returning event_id
"""
PAGE = "select id, key, headers, body from log where id >= ? and id < ? order by id limit ?"
NEXT = "update partitions set next = ? where slot = ?"
SETTLE = "insert into progress values (?, ?, ?, ?) on conflict do update set position = excluded.position"


def connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    for pragma in ("journal_mode=wal", "synchronous=full", "foreign_keys=on", "mmap_size=0", "cache_size=-16384"):
        connection.execute(f"pragma {pragma}")
    return connection


def prepare(where: Path, inputs: list[Input]) -> None:
    """Both files, and the input topic filled. Not measured."""
    store = connect(where / "store.sqlite3")
    store.execute(STORE)
    store.close()
    broker = connect(where / "broker.sqlite3")
    broker.execute(BROKER)
    filled = [0] * PARTITIONS
    broker.execute("begin immediate")
    for each in inputs:
        partition = zlib.crc32(each.key) % PARTITIONS
        position = (1 + partition << 40) + filled[partition]
        broker.execute(
            "insert into log values (?, ?, ?, ?, ?)", (position, each.key, pack(each.headers), each.body, 0.0)
        )
        filled[partition] += 1
    rows = [(1 + partition, TOPIC_IN, partition, filled[partition]) for partition in range(PARTITIONS)]
    rows += [(1 + PARTITIONS + partition, TOPIC_OUT, partition, 0) for partition in range(PARTITIONS)]
    broker.executemany("insert into partitions values (?, ?, ?, ?)", rows)
    broker.execute("commit")
    broker.execute("pragma wal_checkpoint(truncate)")
    broker.close()


def handle(store: apsw.Connection, rows: list[Any], partition: int, sent: list[int]) -> None:
    """One transaction: forget what was sent, claim, one statement per order, outbox."""
    clock = time.time()
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(clock))
    causes = [dict(unpack(headers))["ce_id"].decode() for _, _, headers, _ in rows]
    ids = [UUID(cause) for cause in causes]
    claims = [(id.hex, row[0] & (1 << 40) - 1) for id, row in zip(ids, rows, strict=True)]
    store.execute("begin immediate")
    if sent:
        store.execute("delete from outbox where id between ? and ?", (sent[0], sent[-1]))
    claimed = store.execute(CLAIM, (TOPIC_IN, partition, clock, encode_json(claims).decode()))
    fresh = {row[0] for row in claimed}
    out = []
    for id, cause, (_, _, _, body) in zip(ids, causes, rows, strict=True):
        if id.bytes not in fresh:
            continue
        order = decode_order(body)
        store.execute("insert into payments (order_id, amount) values (?, ?)", (order.order_id, str(order.amount)))
        made, key, headers, payload = outgoing(id, cause, order, now)
        out.append((made.bytes, TOPIC_OUT, key, headers, payload, clock))
    store.executemany("insert into outbox (event_id, topic, key, headers, body, at) values (?, ?, ?, ?, ?, ?)", out)
    store.execute("commit")


def relay(
    broker: apsw.Connection, store: apsw.Connection, last: int, next: list[int], settle: tuple[int, int]
) -> list[int]:
    """One transaction: append what the outbox holds to the log, and the group's progress. The ids sent."""
    rows: list[Any] = store.execute(
        "select id, key, headers, body from outbox where id > ? order by id", (last,)
    ).fetchall()
    clock, log = time.time(), []
    for _, key, headers, body in rows:
        partition = zlib.crc32(key) % PARTITIONS
        log.append(((1 + PARTITIONS + partition << 40) + next[partition], key, headers, body, clock))
        next[partition] += 1
    broker.execute("begin immediate")
    broker.executemany("insert into log values (?, ?, ?, ?, ?)", sorted(log))
    broker.executemany(NEXT, [(position, 1 + PARTITIONS + slot) for slot, position in enumerate(next)])
    broker.execute(SETTLE, (GROUP, TOPIC_IN, *settle))
    broker.execute("commit")
    return [row[0] for row in rows]


def run(where: Path, count: int, batch: int) -> Run:
    """Handle everything; the clock runs from the first read to the last commit."""
    broker, store = connect(where / "broker.sqlite3"), connect(where / "store.sqlite3")
    watch = Stopwatch()
    sent: list[int] = []
    next = [0] * PARTITIONS
    for partition in range(PARTITIONS):
        position, end = 1 + partition << 40, 2 + partition << 40
        while rows := broker.execute(PAGE, (position, end, batch)).fetchall():
            handle(store, rows, partition, sent)
            position += len(rows)  # positions have no gaps
            settle = (partition, position & (1 << 40) - 1)
            sent = relay(broker, store, sent[-1] if sent else 0, next, settle)
    store.execute("delete from outbox")
    done = watch.stop(count)
    broker.close()
    store.close()
    check(where, count)
    return done


def check(where: Path, count: int) -> None:
    """It counts only if every row is there."""
    store, broker = where / "store.sqlite3", where / "broker.sqlite3"
    assert ask(store, "select count(*) from payments") == count
    assert ask(store, "select count(*) from inbox") == count
    assert ask(store, "select count(*) from outbox") == 0
    assert ask(broker, "select count(*) from log") == 2 * count
    assert ask(broker, "select sum(position) from progress") == count


def measure(inputs: list[Input], batch: int) -> Run:
    """One whole run in a folder of its own."""
    with folder() as where:
        prepare(where, inputs)
        return run(where, len(inputs), batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=100)
    options = parser.parse_args()
    done = measure(orders(options.messages), options.batch)
    print(f"{done.rate:,.0f} messages/s, {done.cpu_us:.1f} µs CPU each, batches of {options.batch}")


if __name__ == "__main__":
    main()
