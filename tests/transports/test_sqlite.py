"""The SQLite transport: the suite that every transport passes, and what is true of a file only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import apsw
import pytest

from eventkeel import _sqlite
from eventkeel.errors import BrokerUnavailable, ConfigurationError, PositionError
from eventkeel.message import Delivery, Headers, Outgoing, Position, Slice
from eventkeel.ports.transport import Broken, Budget, Deliveries, Sent, Span, TopicWant, Topology, Transport, Unknown
from eventkeel.testing.transport_kit import (
    PARTITIONS,
    PATIENCE,
    Brokerage,
    eventually,
    keys_of_all_partitions,
    message,
    numbers,
    send,
)
from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.sqlite import SQLiteTransport
from eventkeel.transports.sqlite import transport as transport_module
from eventkeel.transports.sqlite.inbound import RAW_HEADERS
from eventkeel.transports.sqlite.writer import NotStored, Writer


class TestSQLiteTransport(TransportSuite):
    broker = "sqlite"

    async def make(self, place: Path) -> Transport:
        return SQLiteTransport(place / "broker.sqlite3")


Open = Callable[[], Awaitable[SQLiteTransport]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.sqlite3"


@contextlib.asynccontextmanager
async def brokerage(path: Path) -> AsyncIterator[Brokerage]:
    async def make() -> Transport:
        return SQLiteTransport(path)

    async with contextlib.AsyncExitStack() as stack:
        yield Brokerage(make, stack)


def sqlite3_program(path: Path, statements: Sequence[tuple[str, Sequence[object]]]) -> None:
    """Another program, which knows SQLite and nothing of Eventkeel, runs ``statements`` in one transaction."""
    rows = [
        [sql, [["blob", each.hex()] if isinstance(each, bytes) else each for each in row]] for sql, row in statements
    ]
    program = """
        import json, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], timeout=20)
        for sql, row in json.load(sys.stdin):
            connection.execute(sql, [bytes.fromhex(each[1]) if isinstance(each, list) else each for each in row])
        connection.commit()
    """
    run = [sys.executable, "-I", "-c", textwrap.dedent(program), str(path)]
    subprocess.run(run, input=json.dumps(rows).encode(), check=True, timeout=PATIENCE)


def inbound(*row: object) -> tuple[str, Sequence[object]]:
    return "insert into inbound (topic, key, headers, body) values (?, ?, ?, ?)", row


async def everything(transport: Transport, topic: str = "orders") -> list[Delivery]:
    return [each async for page in transport.read(topic, Span()) for each in page]


PUBLISHER = """
    import asyncio, sys
    from eventkeel.message import Headers, Outgoing
    from eventkeel.ports.transport import Sent
    from eventkeel.transports.sqlite import SQLiteTransport

    path, name, waves, size = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4])

    async def main():
        transport = SQLiteTransport(path)
        await transport.open()
        for wave in range(waves):
            outcomes = await transport.publish([
                Outgoing("orders", b"key-%d" % (n % 5), Headers([("n", b"%d" % n)]), name)
                for n in range(wave * size, (wave + 1) * size)
            ], 20)
            assert all(isinstance(each, Sent) for each in outcomes), outcomes
            print(wave, flush=True)
        await transport.close(5)

    asyncio.run(main())
"""


def publisher(path: Path, name: str, waves: int, size: int) -> subprocess.Popen[bytes]:
    run = [sys.executable, "-c", textwrap.dedent(PUBLISHER), str(path), name, str(waves), str(size)]
    return subprocess.Popen(run, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read()
    return process.wait()


# -- several processes


async def test_publishers_in_several_processes_lose_nothing_and_keep_each_keys_order(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        processes = [publisher(path, f"p{number}", 40, 10) for number in range(3)]
        got: list[Delivery] = []
        while len(got) < 3 * 400:
            got += await member.take(1)
            await member.settle(got[-1:])
        assert [await asyncio.to_thread(finish, each) for each in processes] == [0, 0, 0]
        runs: dict[tuple[bytes | None, bytes | None], list[int]] = {}
        for each in got:
            runs.setdefault((each.body, each.key), []).append(numbers([each])[0])
        assert len(runs) == 15
        assert all(run == sorted(set(run)) for run in runs.values())
        for slice in {each.slice for each in got}:
            positions = [each.position for each in got if each.slice == slice]
            assert positions == list(range(len(positions)))
        await member.quiet()


async def test_a_killed_publisher_loses_nothing_that_was_confirmed(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        confirmed: dict[str, int] = {}
        for name in ("p1", "p2", "p3"):
            process = publisher(path, name, 100_000, 7)
            assert process.stdout is not None
            lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            rest = process.stdout.read().split()
            confirmed[name] = (int((rest or lines)[-1]) + 1) * 7
            process.stdout.close()
        stored = await everything(transport)
        for name, count in confirmed.items():
            mine = sorted(numbers(each for each in stored if each.body == name.encode()))
            assert mine[:count] == list(range(count))
            assert len(mine) in (count, count + 7), "a wave is stored whole or not at all"
        await send(transport, [message(1)])


async def test_a_commit_in_another_process_wakes_without_the_poll(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "POLL", 3600.0)
    async with brokerage(path) as broker:
        member = await broker.member(await broker.ready())
        waiting = asyncio.ensure_future(member.take(10))
        await asyncio.sleep(0)
        process = publisher(path, "p", 1, 10)
        assert numbers(sorted(await waiting, key=lambda each: numbers([each]))) == list(range(10))
        assert await asyncio.to_thread(finish, process) == 0


async def test_without_datagrams_the_poll_finds_what_is_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite.Wake, "notify", lambda self: None)
    async with brokerage(path) as broker:
        reading, writing = await broker.ready(), await broker.transport()
        members = [await broker.member(reading), await broker.member(reading)]
        waiting = asyncio.gather(*(member.take(1) for member in members))
        await asyncio.sleep(0)
        await send(writing, [message(1)])
        await waiting


async def test_after_a_fork_the_transport_refuses_to_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ConfigurationError, match="fork"):
                await transport.publish([message(1)], 5.0)


# -- the inbound door


async def test_another_programs_rows_arrive_in_its_order(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        headers = '{"content-type": "application/json", "n": 7, "flag": true, "many": ["a", "b"], "none": null}'
        sqlite3_program(path, [inbound("orders", "ORD1", headers, '{"order_id": "ORD1"}')])
        (got,) = await member.take(1)
        assert (got.key, got.body) == (b"ORD1", b'{"order_id": "ORD1"}')
        assert got.headers.pairs == (
            ("content-type", b"application/json"),
            ("n", b"7"),
            ("flag", b"true"),
            ("many", b"a"),
            ("many", b"b"),
            ("none", b""),
        )
        assert got.slice.partition == zlib.crc32(b"ORD1") % PARTITIONS
        assert got.time > 1.6e9


async def test_many_inbound_rows_are_moved_once_by_many_members(path: Path) -> None:
    async with brokerage(path) as broker:
        await broker.ready("one", "two", "three")
        members = [await broker.member(await broker.transport(), group) for group in ("one", "two", "three")]
        sqlite3_program(path, [inbound("orders", f"key-{n % 3}", f'{{"n": "{n}"}}', b"x") for n in range(2500)])
        for member in members:
            got: list[Delivery] = []
            while len(got) < 2500:
                got += await member.take(1)
                await member.settle(got[-1:])
            for key in (b"key-0", b"key-1", b"key-2"):
                run = numbers(each for each in got if each.key == key)
                assert run == sorted(set(run))
            await member.quiet()


@pytest.mark.parametrize(
    ("row", "key", "body"),
    [
        ((None, None, None), None, None),
        (("", "", ""), b"", b""),
        ((17, None, 99.99), b"17", b"99.99"),
        ((b"\xff\x00", None, b"\x00\xff"), b"\xff\x00", b"\x00\xff"),
        (("grün\0x", None, "\0"), "grün\0x".encode(), b"\0"),
        (("k" * 5000, None, "x" * 100_000), b"k" * 5000, b"x" * 100_000),
    ],
)
async def test_whatever_another_program_wrote_arrives(
    path: Path, row: tuple[object, object, object], key: bytes | None, body: bytes | None
) -> None:
    async with brokerage(path) as broker:
        member = await broker.member(await broker.ready())
        sqlite3_program(path, [inbound("orders", *row)])
        (got,) = await member.take(1)
        assert (got.key, got.headers, got.body) == (key, Headers(), body)


@pytest.mark.parametrize(
    "raw",
    [
        b"no json",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe",
        b'{"nested": {"a": 1}}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
        b'{"\\ud800": "lone surrogate"}',
    ],
)
async def test_headers_that_are_none_are_kept_raw(path: Path, raw: bytes) -> None:
    async with brokerage(path) as broker:
        member = await broker.member(await broker.ready())
        sqlite3_program(path, [inbound("orders", "k", raw, "body"), inbound("orders", "k", '{"n": "1"}', "next")])
        first, second = await member.take(2)
        assert first.headers.pairs == ((RAW_HEADERS, raw),)
        assert (second.body, numbers([second])) == (b"next", [1])


async def test_a_row_without_a_topic_stays_is_reported_and_holds_up_nobody(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        rows = [inbound(topic, "k", None, "x") for topic in ("later", None, b"\xff", 7)]
        sqlite3_program(path, [*rows, inbound("orders", "k", '{"n": "1"}', "x")])
        assert numbers(await member.take(1)) == [1]
        connection = apsw.Connection(str(path))
        assert connection.execute("select count(*) from inbound").fetchall() == [(4,)]
        assert "'later' does not exist" in caplog.text
        other = await broker.transport()  # somebody else makes the topic
        await other.topology(Topology((TopicWant("later", 2),)), apply=True)

        async def moved() -> bool:
            return len(await everything(transport, "later")) == 1

        await eventually(moved)
        assert connection.execute("select count(*) from inbound").fetchall() == [(3,)]
        connection.close()


async def test_an_inbound_row_with_an_id_of_its_own_arrives_too(path: Path) -> None:
    async with brokerage(path) as broker:
        member = await broker.member(await broker.ready())
        for id in (900, 5):
            row = ("insert into inbound values (?, 'orders', 'k', json_object('n', ?1), 'x')", [id])
            sqlite3_program(path, [row])
            assert numbers(await member.take(1)) == [id]


async def test_an_inbound_row_that_is_too_large_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        large = (
            "insert into inbound (topic, key, body) values ('orders', 'k', zeroblob(?))",
            [transport.caps.max_body + 1],
        )
        sqlite3_program(path, [large, inbound("orders", "k", '{"n": "2"}', "x")])
        assert numbers(await member.take(1)) == [2]
        async with asyncio.timeout(10):  # it is told after the commit that member has seen
            while "larger than" not in caplog.text:
                await asyncio.sleep(0.01)


# -- waiting for the file


async def test_a_wave_that_waits_too_long_for_the_lock_is_unknown_and_never_stored(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        other = apsw.Connection(str(path))
        other.execute("begin immediate")
        outcomes = await transport.publish([message(1), message(2)], 0.1)
        assert [type(each) for each in outcomes] == [Unknown, Unknown]
        other.execute("commit")
        other.close()
        await send(transport, [message(3)])
        assert numbers(await everything(transport)) == [3]


async def test_reading_goes_on_while_somebody_holds_the_lock(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        await send(transport, [message(1)])
        other = apsw.Connection(str(path))
        other.execute("begin immediate")
        assert numbers(await member.take(1)) == [1]
        other.execute("rollback")
        other.close()


async def test_a_cancelled_publish_does_not_stop_the_next_one(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        for impatience in range(20):
            task = asyncio.ensure_future(transport.publish([message(impatience)], 5.0))
            for _ in range(impatience % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await send(transport, [message(100)])
        stored = numbers(await everything(transport))
        assert stored[-1] == 100
        assert stored == sorted(set(stored))


async def test_waves_that_wait_share_one_commit(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        other = apsw.Connection(str(path))
        before = other.pragma("data_version")
        commits = 0

        async def count() -> None:
            nonlocal before, commits
            while True:
                if (now := other.pragma("data_version")) != before:
                    before, commits = now, commits + 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await asyncio.gather(*(send(transport, [message(n)]) for n in range(200)))
        counting.cancel()
        other.close()
        assert numbers(await everything(transport)) == list(range(200))
        assert commits <= 20


async def test_a_full_disk_refuses_the_wave_and_is_survived(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        assert isinstance(transport, SQLiteTransport)
        writer = transport._writer
        assert writer is not None
        assert writer._connection is not None
        pages = writer._connection.pragma("page_count")
        writer._connection.pragma("max_page_count", pages + 4)
        waves = [[message(n, body=b"x" * 4000) for n in range(start, start + 10)] for start in range(0, 50, 10)]
        outcomes = await asyncio.gather(*(transport.publish(wave, 5.0) for wave in waves))
        assert all("full" in str(each) for wave in outcomes for each in wave if not isinstance(each, Sent))
        assert not all(isinstance(each, Sent) for wave in outcomes for each in wave)
        stored = sum(isinstance(each, Sent) for wave in outcomes for each in wave)
        assert len(await everything(transport)) == stored
        writer._connection.pragma("max_page_count", pages + 4000)
        await send(transport, [message(100)])


async def test_work_that_fails_harms_no_neighbour(tmp_path: Path) -> None:
    def connect() -> apsw.Connection:
        connection = apsw.Connection(str(tmp_path / "any.sqlite3"))
        connection.execute("create table t (n integer not null)")
        return connection

    writer = Writer(connect, lambda: None)
    await writer.open()
    add = "insert into t values (?)"
    jobs = [writer.submit(lambda c, n=n: c.execute(add, (n,)).fetchall()) for n in (1, 2, None, 4)]  # type: ignore[misc]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(each) for each in answers] == [list, list, NotStored, list]
    assert await writer.submit(lambda c: c.execute("select n from t").fetchall()) == [(1,), (2,), (4,)]
    await writer.close(5.0)
    with pytest.raises(NotStored):
        await writer.submit(lambda c: None)


async def test_work_that_leaves_its_transaction_in_disorder_stops_no_other(tmp_path: Path) -> None:
    writer = Writer(lambda: _sqlite.connect(tmp_path / "file"), lambda: None)
    await writer.open()

    def disorder(connection: apsw.Connection) -> None:
        connection.execute("release work")

    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(writer.submit(disorder), 5)
    await asyncio.wait_for(writer.submit(lambda connection: connection.execute("create table t (x)")), 5)
    await writer.close(1.0)


async def test_where_sqlite_ends_the_transaction_itself_nobody_is_told_that_it_was_stored(tmp_path: Path) -> None:
    def connect() -> apsw.Connection:
        connection = apsw.Connection(str(tmp_path / "any.sqlite3"))
        connection.execute("create table t (n integer not null)")
        return connection

    writer = Writer(connect, lambda: None)
    await writer.open()
    sql = ["insert into t values (1)", "insert or rollback into t values (null)", "insert into t values (3)"]
    jobs = [writer.submit(lambda c, one=one: c.execute(one).fetchall()) for one in sql]  # type: ignore[misc]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(each) for each in answers] == [NotStored, NotStored, NotStored]
    assert await writer.submit(lambda c: c.execute("select n from t").fetchall()) == []
    await writer.close(5.0)


# -- the file


async def test_a_file_of_something_else_is_refused(path: Path) -> None:
    junk = path.with_name("junk")
    junk.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigurationError, match="no SQLite database"):
        await SQLiteTransport(junk).open()
    other = apsw.Connection(str(path))
    other.execute("create table notes (text)")
    other.close()
    with pytest.raises(ConfigurationError, match="something else"):
        await SQLiteTransport(path).open()


async def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    async with brokerage(path) as broker:
        await broker.ready()
    other = apsw.Connection(str(path))
    other.pragma("user_version", 99)
    other.close()
    with pytest.raises(ConfigurationError, match="newer"):
        await SQLiteTransport(path).open()


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        await SQLiteTransport(tmp_path / "file" / "broker.sqlite3").open()


async def test_a_topic_made_again_is_another_one(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        await send(transport, [message(n) for n in range(3)])
        got = await member.take(3)
        await member.settle(got)
        waiting = asyncio.ensure_future(member.subscription.next())
        sqlite3_program(path, [("delete from topics where name = 'orders'", [])])  # with foreign keys off
        broken = await asyncio.wait_for(waiting, PATIENCE)
        assert isinstance(broken, Broken)
        assert broken.fatal
        assert "orders" in broken.reason
        await broker.ready()
        await send(transport, [message(10)])
        again = await broker.member(transport, begin=False)
        with pytest.raises(PositionError, match="made again"):
            await again.subscription.begin(got[0].slice, member.after(got[2]))
        await again.begin()
        assert numbers(await again.take(1)) == [10]
        assert all(each.settled is None for each in await transport.lag("billing"))


async def test_positions_that_are_gone_are_said_and_gaps_are_passed(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        await send(transport, [message(n) for n in range(20)])
        slice = (await everything(transport))[0].slice
        gone = "select id from messages where position < 5 or position in (8, 9) or position > 15"
        sqlite3_program(path, [(f"delete from log where id in ({gone})", [])])
        member = await broker.member(transport)
        assert numbers(await member.take(9)) == [5, 6, 7, 10, 11, 12, 13, 14, 15]
        await member.quiet()
        await send(transport, [message(20)])
        assert numbers(await member.take(1)) == [20]
        late = await broker.member(transport, begin=False)
        with pytest.raises(PositionError, match="retention"):
            await late.subscription.begin(slice, Position(2, member.incarnations[slice]))


async def test_a_slice_that_does_not_exist_cannot_be_begun(path: Path) -> None:
    async with brokerage(path) as broker:
        member = await broker.member(await broker.ready(), begin=False)
        for wrong in (Slice("orders", PARTITIONS), Slice("other", 0), Slice("orders", 0, 2)):
            with pytest.raises(PositionError, match="does not exist"):
                await member.subscription.begin(wrong, None)


async def test_begun_slices_take_turns(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport, budget=Budget(count=100_000), begin=False)
        many = [message(n, key=key) for n in range(30) for key in keys_of_all_partitions()]
        await send(transport, many, wave=1000)
        await member.begin()
        turns = []
        for _ in range(PARTITIONS):
            arrival = await member.subscription.next()
            assert isinstance(arrival, Deliveries)
            turns.append(arrival.slice.partition)
        assert sorted(turns) == list(range(PARTITIONS))


async def test_a_large_message_is_not_passed_for_ever_by_small_ones(path: Path) -> None:
    keys = keys_of_all_partitions()
    small, large = (
        keys[0],
        next(key for key in keys if zlib.crc32(key) % PARTITIONS != zlib.crc32(keys[0]) % PARTITIONS),
    )
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport, budget=Budget(bytes=10_000))
        await send(transport, [message(n, key=small, body=b"x" * 1000) for n in range(2000)])
        out = await member.take(9)
        await send(transport, [message(9999, key=large, body=b"x" * 6_000)])
        arrived = numbers(out)
        while arrived[-1] != 9999:
            await member.settle([out.pop(0)])
            with contextlib.suppress(TimeoutError):
                arrival = await asyncio.wait_for(member.subscription.next(), 0.05)
                assert isinstance(arrival, Deliveries)
                out += arrival.items
                arrived += numbers(arrival.items)
        assert len(arrived) < 1000, "small ones took the room that it waits for"


async def test_a_released_slice_gives_its_budget_back(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport, budget=Budget(count=5), begin=False)
        await send(transport, [message(n, key=key) for n in range(5) for key in keys_of_all_partitions()])
        first, second = member.slices[:2]
        await member.subscription.begin(first, None)
        assert {each.slice for each in await member.take(5)} == {first}
        await member.subscription.begin(second, None)
        await member.quiet()
        await member.subscription.release([first])
        assert {each.slice for each in await member.take(5)} == {second}


async def test_the_settled_position_is_written_down_without_being_asked_for(path: Path) -> None:
    async with brokerage(path) as broker:
        transport = await broker.ready()
        member = await broker.member(transport)
        await send(transport, [message(n) for n in range(4)])
        got = await member.take(4)
        await member.settle(got)
        other = await broker.transport()  # does not know what the first has in memory

        async def written() -> bool:
            return any(each.settled == 4 for each in await other.lag("billing"))

        await eventually(written)


async def test_whoever_goes_on_behind_a_dead_member_tells_the_broker_how_far_that_one_was(path: Path) -> None:
    """It may have died after its unit and before the broker heard of it; and nothing more may ever come."""
    async with brokerage(path) as broker:
        transport = await broker.ready()
        await send(transport, [message(n) for n in range(4)])
        member = await broker.member(transport, begin=False)
        slices = {each.slice: each.end for each in await transport.lag("billing")}
        incarnation = next(iter(await transport.lag("billing"))).incarnation
        for slice, end in slices.items():
            await member.subscription.begin(slice, Position(end, incarnation))
        other = await broker.transport()

        async def written() -> bool:
            return {each.slice: each.settled for each in await other.lag("billing")} == slices

        await eventually(written)


async def test_time_comes_from_the_clock(path: Path) -> None:
    class Noon:
        def now(self) -> float:
            return 43200.0

        def monotonic(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None: ...

    transport = SQLiteTransport(path, clock=Noon())
    await transport.open()
    await transport.topology(Topology((TopicWant("orders", 1),)), apply=True)
    await send(transport, [message(1)])
    assert [each.time for each in await everything(transport)] == [43200.0]
    await transport.close(5.0)


async def test_people_can_read_the_log(path: Path) -> None:
    async with brokerage(path) as broker:
        await send(await broker.ready(), [Outgoing("orders", b"ORD1", Headers(), b'{"a": 1}')])
    connection = apsw.Connection(str(path))
    rows = connection.execute("select topic, position, key, body from messages").fetchall()
    assert rows == [("orders", 0, "ORD1", '{"a": 1}')]
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_nothing_is_left_beside_the_file_after_a_close(path: Path) -> None:
    async with brokerage(path) as broker:
        await broker.member(await broker.ready())
    left = [each for each in path.parent.rglob("*") if each.is_file() or each.is_socket()]
    assert left == [path]
