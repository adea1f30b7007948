"""The Kafka transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names, imported there
    AdminClient,
    NewTopic,
)

from eventkeel.errors import GroupTaken, PositionError
from eventkeel.message import Delivery, Headers, Outgoing, Position, Slice
from eventkeel.ports.transport import (
    Arrival,
    Assigned,
    Broken,
    Budget,
    Deliveries,
    GroupWant,
    Lost,
    Refused,
    Revoking,
    Sent,
    TopicWant,
    Topology,
    Unknown,
)
from eventkeel.testing.transport_kit import PARTITIONS, PATIENCE, eventually, keys_of_all_partitions, message, numbers
from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.kafka import KafkaTransport, polling, subscription


def own(url: str, place: Path, more: str = "") -> KafkaTransport:
    """A transport whose topics and groups are this test's own, on the broker that all tests share."""
    prefix = f"t{zlib.crc32(str(place).encode()):08x}."
    rest = url.removeprefix("kafka:")
    return KafkaTransport(f"{rest}{'&' if '?' in rest else '?'}prefix={prefix}{more}")


class TestKafka(TransportSuite):
    broker = "kafka"

    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        self.url = kafka_url

    async def make(self, place: Path) -> KafkaTransport:
        return own(self.url, place)


class TestNewerGroupProtocol(TestKafka):
    """The same with the group protocol of KIP-848, in which the broker alone decides."""

    async def make(self, place: Path) -> KafkaTransport:
        return own(self.url, place, "&group.protocol=consumer")

    async def test_a_member_that_goes_at_once_is_not_waited_for(self, tmp_path: Path) -> None:
        """A goodbye that overtakes the answer to the greeting leaves its partitions with nobody for a session."""
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            assert isinstance(transport, KafkaTransport)

            async def come_and_go(age: float) -> None:
                passing = (await broker.transport()).subscribe("billing", ["orders"], Budget())
                await asyncio.sleep(age)  # the greeting is somewhere between the client and its answer
                await passing.close(PATIENCE)

            for age in (0.0, 0.005, 0.05, 0.1):
                await asyncio.gather(*(come_and_go(age) for _ in range(10)))
            name = transport.options.on_broker("billing")
            admin = AdminClient({"bootstrap.servers": transport.options.servers})
            described = admin.describe_consumer_groups([name])[name]
            assert not (await asyncio.wrap_future(described)).members


# -- what is Kafka's own

WANT = Topology((TopicWant("orders", PARTITIONS),), (GroupWant("billing", "a store", ("orders",)),))


class Place:
    """A test's own corner of the broker."""

    def __init__(self, url: str, place: Path) -> None:
        self.servers = url.removeprefix("kafka://").partition("?")[0]
        self._url, self._place = url, place
        self._stack = contextlib.AsyncExitStack()
        self.admin = AdminClient({"bootstrap.servers": self.servers})

    async def __aenter__(self) -> Place:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def transport(self, more: str = "", want: Topology | None = WANT) -> KafkaTransport:
        transport = own(self._url, self._place, more)
        await transport.open()
        self._stack.push_async_callback(transport.close, 5.0)
        if want is not None:
            found = await transport.topology(want, apply=True)
            assert all(each.kind != "refused" for each in found), found
        return transport

    def subscribe(self, transport: KafkaTransport, budget: Budget | None = None) -> Taker:
        made = transport.subscribe("billing", ["orders"], budget or Budget())
        self._stack.push_async_callback(made.close, 5.0)
        return Taker(made)

    def name(self, transport: KafkaTransport, topic: str = "orders") -> str:
        return transport.options.on_broker(topic)

    async def cut(self, transport: KafkaTransport, slice: Slice, before: int) -> None:
        """What retention does: remove everything before a position."""
        part = TopicPartition(self.name(transport, slice.topic), slice.partition, before)
        for future in self.admin.delete_records([part]).values():
            await asyncio.wrap_future(future)

    async def again(self, transport: KafkaTransport, partitions: int = PARTITIONS) -> None:
        """Delete the topic and make it anew under its name."""
        name = self.name(transport)
        await asyncio.wrap_future(self.admin.delete_topics([name])[name])
        await eventually(lambda: self._is_gone(transport))
        made = self.admin.create_topics([NewTopic(name, partitions, 1)])
        await asyncio.wrap_future(made[name])
        await eventually(lambda: transport.topic("orders"))

    async def _is_gone(self, transport: KafkaTransport) -> bool:
        return await transport.topic("orders") is None


class Taker:
    """A subscription whose news are kept apart from its deliveries."""

    def __init__(self, made: subscription.KafkaSubscription) -> None:
        self.subscription = made
        self.got: list[Delivery] = []
        self.news: list[Arrival] = []
        self.at: dict[Slice, Position] = {}
        self.mine: set[Slice] = set()

    async def until(self, enough: Callable[[], bool], *, begin: bool = True, patience: float = PATIENCE) -> None:
        async with asyncio.timeout(patience):
            while not enough():
                arrival = await self.subscription.next()
                if isinstance(arrival, Deliveries):
                    self.got += arrival.items
                    self.at[arrival.slice] = Position(arrival.items[-1].position + 1, arrival.incarnation)
                    continue
                self.news.append(arrival)
                if isinstance(arrival, Assigned):
                    self.mine |= set(arrival.slices)
                    for slice in arrival.slices if begin else ():
                        await self.subscription.begin(slice, self.at.get(slice))
                if isinstance(arrival, (Revoking, Lost)):
                    self.mine -= set(arrival.slices)

    async def all_assigned(self, *, begin: bool = True, count: int = PARTITIONS) -> None:
        await self.until(lambda: len(self.mine) == count, begin=begin)

    def broken(self) -> list[Broken]:
        return [each for each in self.news if isinstance(each, Broken) and each.fatal]


@pytest.fixture
async def place(kafka_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with Place(kafka_url, tmp_path) as made:
        yield made


async def send(transport: KafkaTransport, messages: Iterable[Outgoing]) -> None:
    outcomes = await transport.publish(list(messages), PATIENCE)
    assert all(isinstance(each, Sent) for each in outcomes), outcomes


async def test_foreign_records_are_read_as_they_are(place: Place) -> None:
    transport = await place.transport()
    producer = Producer({"bootstrap.servers": place.servers})
    name = place.name(transport)
    headers: list[tuple[str, Any]] = [("a", None), ("a", b""), ("B", b"\xff")]
    producer.produce(name, None, b"k", partition=0, headers=headers)
    producer.produce(name, b"", None, partition=0)
    producer.produce(name, b"x", b"", partition=0)
    producer.flush(PATIENCE)
    taker = place.subscribe(transport)
    await taker.until(lambda: len(taker.got) == 3)
    assert [(each.key, each.body) for each in taker.got] == [(b"k", None), (None, b""), (b"", b"x")]
    assert taker.got[0].headers == Headers([("a", b""), ("a", b""), ("B", b"\xff")])
    assert taker.got[1].headers == Headers()


async def test_a_key_lies_where_other_clients_look_for_it(place: Place) -> None:
    """As murmur2 says, which Java, Go and Node use; expected places from the Java client."""
    transport = await place.transport()
    await send(transport, [message(n, key=key) for n, key in enumerate([b"order-1", b"order-2", b"", "ü".encode()])])
    taker = place.subscribe(transport)
    await taker.until(lambda: len(taker.got) == 4)
    assert {each.key: each.slice.partition for each in taker.got} == {
        key: (_murmur2(key) & 0x7FFFFFFF) % PARTITIONS for key in (b"order-1", b"order-2", b"", "ü".encode())
    }


def _murmur2(data: bytes) -> int:
    """From the source of Kafka's Java client."""
    mask, m, r = 0xFFFFFFFF, 0x5BD1E995, 24
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    for start in range(0, length - length % 4, 4):
        k = int.from_bytes(data[start : start + 4], "little") * m & mask
        k = (k ^ (k >> r)) * m & mask
        h = (h * m & mask) ^ k
    tail = data[length - length % 4 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


# -- never skip in silence


async def test_a_position_that_retention_has_passed_is_refused(place: Place) -> None:
    transport = await place.transport()
    await send(transport, [message(n) for n in range(10)])
    taker = place.subscribe(transport)
    await taker.until(lambda: len(taker.got) == 10)
    slice, incarnation = taker.got[0].slice, taker.at[taker.got[0].slice].incarnation
    await place.cut(transport, slice, 6)
    with pytest.raises(PositionError, match=r"retention.*--start earliest"):
        await taker.subscription.begin(slice, Position(5, incarnation))
    await taker.subscription.begin(slice, Position(6, incarnation))
    await taker.until(lambda: len(taker.got) == 14)
    await taker.subscription.begin(slice, None)
    await taker.until(lambda: len(taker.got) == 18)
    assert numbers(taker.got[10:]) == [6, 7, 8, 9] * 2


async def test_retention_that_overtakes_a_waiting_reader_stops_it(place: Place) -> None:
    transport = await place.transport()
    taker = place.subscribe(transport, Budget(count=5))
    await taker.all_assigned()
    await send(transport, [message(n) for n in range(5)])
    await taker.until(lambda: len(taker.got) == 5)
    slice = taker.got[0].slice
    await taker.subscription.pause([slice], True)
    await send(transport, [message(n) for n in range(5, 2000)])
    await place.cut(transport, slice, 1990)
    await taker.subscription.pause([slice], False)
    await taker.subscription.settle(slice, [taker.at[slice]])
    await taker.until(lambda: bool(taker.broken()))
    assert str(slice) in taker.broken()[0].reason
    assert "--start" in taker.broken()[0].reason
    assert all(number < 1990 for number in numbers(taker.got)), "something was left out in silence"


async def test_a_topic_made_again_is_refused_at_the_start_and_noticed_while_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "WATCH", 0.2)
    transport = await place.transport()
    taker = place.subscribe(transport)
    await send(transport, [message(n) for n in range(3)])
    await taker.until(lambda: len(taker.got) == 3)
    slice = taker.got[0].slice
    await place.again(transport)
    await taker.until(lambda: bool(taker.broken()))
    assert "orders" in taker.broken()[0].reason
    with pytest.raises(PositionError, match=r"made again.*--start earliest"):
        await taker.subscription.begin(slice, taker.at[slice])


async def test_a_group_whose_commits_another_client_made_keeps_them(place: Place) -> None:
    transport = await place.transport(want=Topology(WANT.topics))
    await send(transport, [message(n) for n in range(10)])
    ends = {each: await _end(transport, each) for each in await transport.slices("billing", ["orders"])}
    (slice,) = [each for each, end in ends.items() if end == 10]
    part = TopicPartition(place.name(transport), slice.partition, 7)
    foreign = Consumer({"bootstrap.servers": place.servers, "group.id": transport.options.on_broker("billing")})
    foreign.commit(offsets=[part], asynchronous=False)
    foreign.close()
    findings = await transport.topology(WANT, apply=True)
    assert [each.kind for each in findings] == ["same", "created"]
    lag = {each.slice: each for each in await transport.lag("billing")}
    assert lag[slice].settled == 7
    assert {each.settled for each in lag.values() if each.slice != slice} == {None}
    assert lag[slice].incarnation
    taker = place.subscribe(transport)
    await taker.all_assigned(begin=False)
    await taker.subscription.begin(slice, Position(7, lag[slice].incarnation))
    await taker.until(lambda: len(taker.got) == 3)
    assert numbers(taker.got) == [7, 8, 9]


async def _end(transport: KafkaTransport, slice: Slice) -> int:
    where = (transport.options.on_broker(slice.topic), slice.partition)
    return (await transport.admin.ends([where]))[where]


async def test_a_group_that_another_store_has_taken_meanwhile_is_not_read(place: Place) -> None:
    ours = await place.transport()
    theirs = await place.transport(want=Topology(WANT.topics))
    theirs.asking.stores["billing"] = "another store"
    taker = place.subscribe(theirs)
    await send(ours, [message(1)])
    await taker.until(lambda: len(taker.got) == 1)
    (slice,) = taker.at
    await taker.subscription.settle(slice, [taker.at[slice]])

    async def taken() -> bool:
        with contextlib.suppress(GroupTaken):
            await ours.lag("billing")
            return False
        return True

    await eventually(taken)


# -- members


async def test_a_member_that_joins_gets_what_the_other_gives_back(place: Place) -> None:
    transport = await place.transport()
    await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
    count = len(keys_of_all_partitions())
    first = place.subscribe(transport)
    await first.until(lambda: len(first.got) == count)
    second = place.subscribe(transport)

    async def give() -> None:
        await first.until(lambda: any(isinstance(each, Revoking) for each in first.news))
        (revoking,) = [each for each in first.news if isinstance(each, Revoking)]
        assert revoking.deadline > 1
        for slice in revoking.slices:
            await first.subscription.settle(slice, [first.at[slice]])
        await asyncio.sleep(0.3)
        assert not second.mine, "given to another before it was given back"
        await first.subscription.release(revoking.slices)
        staying = sum(each.slice not in revoking.slices for each in first.got)
        await first.until(lambda: len(first.got) == count + staying)

    giving = asyncio.ensure_future(give())
    await second.until(lambda: len(second.mine) == PARTITIONS // 2, begin=False)
    assert len(first.mine) == PARTITIONS // 2
    assert not first.mine & second.mine
    for slice in second.mine:
        await second.subscription.begin(slice, first.at[slice])
    fresh = [message(n, key=key) for n, key in enumerate(keys_of_all_partitions(), start=1000)]
    await send(transport, fresh)
    theirs = sum(each.slice in second.mine for each in first.got)
    await second.until(lambda: len(second.got) == theirs)
    await giving
    assert sorted(n for n in numbers(first.got + second.got) if n >= 1000) == list(range(1000, 1000 + count))


async def test_a_member_that_does_not_give_back_in_time_loses_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "REVOKE_PATIENCE", 0.5)
    transport = await place.transport()
    first = place.subscribe(transport)
    await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
    await first.until(lambda: len(first.got) == len(keys_of_all_partitions()))
    second = place.subscribe(transport)
    await second.until(lambda: len(second.mine) == PARTITIONS // 2, begin=False)
    await first.until(lambda: any(isinstance(each, Lost) for each in first.news))
    revoking, lost = [each for each in first.news if isinstance(each, (Revoking, Lost))]
    assert set(revoking.slices) == set(lost.slices) == second.mine


async def test_a_handler_slower_than_the_poll_interval_does_not_cost_the_membership(place: Place) -> None:
    more = "&consumer.session.timeout.ms=6000&consumer.max.poll.interval.ms=6000"
    transport = await place.transport(more)
    taker = place.subscribe(transport, Budget(count=10))
    await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions() * 50)])
    await taker.until(lambda: len(taker.got) == 10)
    with contextlib.suppress(TimeoutError):  # nothing is settled: no room, nothing arrives
        await taker.until(lambda: False, patience=8.0)
    assert len(taker.got) == 10
    assert all(isinstance(each, Assigned) for each in taker.news), taker.news
    for _ in range(20):
        for slice, at in taker.at.items():
            await taker.subscription.settle(slice, [at])
        have = len(taker.got)
        await taker.until(lambda have=have: len(taker.got) > have)  # type: ignore[misc]
    offsets: dict[Slice, list[int]] = {}
    for each in taker.got:
        offsets.setdefault(each.slice, []).append(each.position)
    for run in offsets.values():
        assert run == list(range(len(run))), "pausing left something out or repeated it"


# -- sending


async def test_a_topics_own_limit_is_known_before_anything_of_the_key_is_sent(place: Place) -> None:
    transport = await place.transport("&create.max.message.bytes=20000")
    body = b"x" * 30_000
    wave = [message(0), message(1, key=b"l", body=body), message(2, key=b"l"), *(message(n) for n in range(3, 300))]
    outcomes = await transport.publish(wave, PATIENCE)
    assert isinstance(outcomes[1], Refused)
    assert outcomes[1].final
    assert isinstance(outcomes[2], Refused)
    assert not outcomes[2].final
    assert all(isinstance(each, Sent) for each in [outcomes[0], *outcomes[3:]])
    many = [message(n, body=b"y" * 5_000) for n in range(100)]  # more than one batch may have
    assert all(isinstance(each, Sent) for each in await transport.publish(many, PATIENCE))


async def test_a_limit_that_was_lowered_meanwhile_stops_one_message_and_not_its_neighbours(place: Place) -> None:
    transport = await place.transport()
    await send(transport, [message(0)])
    await _lower_limit(place, transport, 20_000)
    wave = [message(n, key=b"k%d" % n, body=b"x" * (30_000 if n == 5 else 100)) for n in range(10)]
    async with asyncio.timeout(PATIENCE):
        while True:
            outcomes = await transport.publish(wave, PATIENCE)
            final = [isinstance(each, Refused) and each.final for each in outcomes]
            assert not any(final[:5] + final[6:]), outcomes
            if final[5] and all(isinstance(each, Sent) for each in [*outcomes[:5], *outcomes[6:]]):
                break
            await asyncio.sleep(0.05)


async def _lower_limit(place: Place, transport: KafkaTransport, limit: int) -> None:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
    )

    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, place.name(transport), incremental_configs=[entry])
    for future in place.admin.incremental_alter_configs([resource]).values():
        await asyncio.wrap_future(future)


async def test_headers_that_no_record_can_have_are_refused(place: Place) -> None:
    transport = await place.transport()
    wave = [Outgoing("orders", b"a", Headers([("x\0y", b"1")]), b""), message(1), message(2, topic="\ud800")]
    outcomes = await transport.publish(wave, PATIENCE)
    assert isinstance(outcomes[0], Refused)
    assert outcomes[0].final
    assert isinstance(outcomes[1], Sent)
    assert isinstance(outcomes[2], Refused)


async def test_a_wave_larger_than_the_clients_memory_is_sent_all_the_same(place: Place) -> None:
    transport = await place.transport("&producer.queue.buffering.max.kbytes=1024")
    body = b"x" * 200_000
    await send(transport, [message(n, key=b"%d" % n, body=body) for n in range(40)])


async def test_a_topic_that_was_deleted_is_refused_and_not_waited_for_each_time(place: Place) -> None:
    transport = await place.transport()
    await send(transport, [message(1)])
    name = place.name(transport)
    await asyncio.wrap_future(place.admin.delete_topics([name])[name])

    async def refused() -> bool:
        (outcome,) = await transport.publish([message(2)], 1.0)
        assert isinstance(outcome, (Refused, Unknown, Sent)), outcome
        return isinstance(outcome, Refused) and not outcome.final

    await eventually(refused)
    began = time.monotonic()
    assert await refused()
    assert time.monotonic() - began < 1.0
    await transport.topology(WANT, apply=True)
    await send(transport, [message(3)])


async def test_topics_are_created_as_the_url_says(place: Place) -> None:
    transport = await place.transport("&create.retention.ms=3600000&replication=1")
    name = place.name(transport)
    settings = (await transport.admin.settings([name]))[name]
    assert settings["retention.ms"] == "3600000"
    assert settings["message.timestamp.type"] == "LogAppendTime"
    too_many = await place.transport("&replication=9", want=None)
    (finding,) = await too_many.topology(Topology((TopicWant("more", 1),)), apply=True)
    assert finding.kind == "refused"
    assert "INVALID_REPLICATION_FACTOR" in finding.detail


async def test_a_compacted_topic_is_refused(place: Place) -> None:
    transport = await place.transport("&create.cleanup.policy=compact", want=None)
    findings = await transport.topology(Topology((TopicWant("orders", 1),)), apply=True)
    (refused,) = [each for each in findings if each.kind == "refused"]
    assert "compact" in refused.detail


async def test_a_polling_thread_that_fails_is_followed_by_another(place: Place) -> None:
    transport = await place.transport()
    taker = place.subscribe(transport)
    await send(transport, [message(n) for n in range(3)])
    await taker.until(lambda: len(taker.got) == 3)
    (slice,) = taker.at

    def fail() -> None:
        raise RuntimeError("whatever it is")

    taker.subscription._poller._do(fail)
    await taker.until(lambda: any(isinstance(each, Lost) for each in taker.news))
    (broken,) = [each for each in taker.news if isinstance(each, Broken)]
    assert "whatever it is" in broken.reason
    assert not broken.fatal
    await taker.all_assigned()
    await send(transport, [message(n) for n in range(3, 6)])
    await taker.until(lambda: len(taker.got) == 6)
    assert numbers(taker.got) == list(range(6))
    assert taker.at[slice].at == 6
