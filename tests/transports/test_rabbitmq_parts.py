"""RabbitMQ's parts without a broker: frames against pamqp's, URLs, and what records add up to."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import body as pamqp_body
from pamqp import commands, frame, header

from eventkeel.errors import ConfigurationError
from eventkeel.message import Headers, Slice
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import Line
from eventkeel.transports.rabbitmq.flow import Flow
from eventkeel.transports.rabbitmq.management import Binding
from eventkeel.transports.rabbitmq.registry import Generation, Record, State
from eventkeel.transports.rabbitmq.settings import parse
from eventkeel.transports.rabbitmq.topology import Declarer, slices_of


def frames(data: bytes) -> list[Any]:
    found = []
    while data:
        used, _, one = frame.unmarshal(data)
        found.append(one)
        data = data[used:]
    return found


def test_a_published_message_reads_as_pamqp_reads_it() -> None:
    headers = Headers(
        [("content-type", b"application/json"), ("ce_id", b"1-2"), ("ce_type", b"Paid"), ("own", b"\xff")]
    )
    data = wire.publish(3, b"orders", b"k\xff", headers, b"x" * 300, 131_072, 1_795_000_000)
    publish, properties, body = frames(data.replace(b"k\xff", b"kk"))
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == (
        "orders",
        "kk",
        True,
        False,
    )
    assert properties.body_size == 300
    assert properties.properties.content_type == "application/json"
    assert properties.properties.delivery_mode == 2
    assert properties.properties.message_id == "1-2"
    assert properties.properties.timestamp == datetime.fromtimestamp(1_795_000_000, UTC)
    assert properties.properties.headers == {"ce-id": "1-2", "ce-type": "Paid", "own": b"\xff"}
    assert body.value == b"x" * 300


def test_a_large_body_is_cut_into_frames_that_the_broker_takes() -> None:
    data = wire.publish(1, b"t", b"", Headers(), bytes(range(256)) * 40, 4096, 1)
    found = frames(data)
    assert b"".join(each.value for each in found[2:]) == bytes(range(256)) * 40
    assert max(len(each.value) for each in found[2:]) == 4096 - 8


def delivery(headers: dict[str, Any], body: bytes, **properties: Any) -> bytes:
    basic = commands.Basic.Properties(headers=headers, **properties)
    parts = [
        frame.marshal(commands.Basic.Deliver("tag", 7, False, "orders", "A1"), 5),
        frame.marshal(header.ContentHeader(0, len(body), basic), 5),
    ]
    parts += [frame.marshal(pamqp_body.ContentBody(body[at : at + 100]), 5) for at in range(0, len(body), 100)]
    return b"".join(parts)


def test_a_delivery_is_put_together_however_the_network_cuts_it() -> None:
    told = {"ce-id": "1", "ce-type": "Paid", "n": 5, "yes": True, "x-delivery-count": 3, "x-stream-offset": 99}
    one = delivery(
        told, b"b" * 250, content_type="text/json", message_id="m", timestamp=datetime(2026, 11, 25, tzinfo=UTC)
    )
    data = one * 20
    dice = random.Random(3)
    got: list[tuple[int, wire.Delivered, bytes]] = []
    sorting = wire.Sorter(
        lambda channel, payload: pytest.fail("no method was sent"),
        lambda channel, method, head, body: got.append((channel, wire.delivered(method, head), body)),
    )
    while data:
        cut = dice.randint(1, 120)
        sorting.feed(data[:cut])
        data = data[cut:]
    assert len(got) == 20
    channel, first, body = got[0]
    assert (channel, body, first.tag, first.key, first.offset) == (5, b"b" * 250, 7, b"A1", 99)
    assert first.time == datetime(2026, 11, 25, tzinfo=UTC).timestamp()
    assert dict(first.headers.pairs) == {
        "content-type": b"text/json",
        "ce_id": b"1",
        "ce_type": b"Paid",
        "n": b"5",
        "yes": b"true",
    }


def sorter() -> wire.Sorter:
    return wire.Sorter(lambda channel, payload: None, lambda channel, method, head, body: None)


def test_what_is_no_amqp_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(ValueError, match="end mark"):
        sorter().feed(b"\x01\x00\x00\x00\x00\x00\x01ab")
    with pytest.raises(ValueError, match="a frame of"):
        sorter().feed(b"HTTP/1.1 400 Bad Request")


def test_an_ack_reads_as_pamqp_reads_it() -> None:
    (found,) = frames(wire.ack(9, 1234, True))
    assert (found.name, found.delivery_tag, found.multiple) == ("Basic.Ack", 1234, True)


@pytest.mark.parametrize(
    ("url", "vhost", "hosts"),
    [
        ("//localhost", "/", (("localhost", 5672),)),
        ("//me:p%40ss@a:1,b:2/", "/", (("a", 1), ("b", 2))),
        ("//[::1]:5673/%2Fshop?prefetch=10", "/shop", (("::1", 5673),)),
        ("//h/shop", "shop", (("h", 5672),)),
    ],
)
def test_a_url_says_where_and_as_whom(url: str, vhost: str, hosts: tuple[tuple[str, int], ...]) -> None:
    options = parse(url)
    assert (options.vhost, options.hosts) == (vhost, hosts)
    if "me:" in url:
        assert (options.user, options.password) == ("me", "p@ss")
        assert "p@ss" not in options.name


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("//", "a broker URL is amqp://"),
        ("//h:99999", "a broker URL is amqp://"),
        ("//me:secret@h?speed=1", "speed in the broker's URL is no option"),
        ("//me:secret@h?prefetch=0", "prefetch=0"),
        ("//me:secret@h?history=long", "history=long"),
        ("//me:secret@h?prefetch", "name=value"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(url)
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)


def state(*records: Record) -> State:
    made = State()
    for record in records:
        made.add(record)
    return made


def bound(number: int, shards: int, *, past: bool) -> Record:
    return Record("generation", group="g", topic="t", generation=number, shards=shards, past=past)


def test_of_two_records_that_contradict_each_other_the_first_counts() -> None:
    found = state(
        Record("topic", topic="t", partitions=4, id="a"),
        Record("topic", topic="t", partitions=8, id="b"),
        Record("group", group="g", store="one"),
        Record("group", group="g", store="two"),
        bound(1, 4, past=False),
        bound(1, 8, past=True),
    )
    assert found.topics["t"].partitions == 4
    assert found.groups["g"] == "one"
    generation = found.last("g", "t")
    assert generation is not None
    assert (generation.shards, generation.past) == (4, False)


def test_what_is_consumed_goes_from_the_history_to_the_old_queues_to_the_new_ones() -> None:
    found = state(Record("topic", topic="t", partitions=2), bound(1, 2, past=False))
    old = [Slice("t", 0, 1), Slice("t", 1, 1)]
    assert slices_of(found, "g", "t") == old
    found.add(bound(2, 3, past=True))
    assert slices_of(found, "g", "t") == [Slice("t", 0, 0)]
    found.add(Record("filled", group="g", topic="t", generation=2))
    assert slices_of(found, "g", "t") == old
    found.add(Record("drained", group="g", topic="t", generation=1, shard=0))
    assert slices_of(found, "g", "t") == old[1:]
    found.add(Record("drained", group="g", topic="t", generation=1, shard=1))
    assert slices_of(found, "g", "t") == [Slice("t", shard, 2) for shard in range(3)]


def test_a_group_that_nobody_declared_has_nothing() -> None:
    assert slices_of(state(), "g", "t") == []


# ------------------------------------------------------------------ acknowledging


class _Broker:
    """A connection and its one channel, which note what is acknowledged: tag, and whether all before it are meant."""

    def __init__(self) -> None:
        self.connection, self.number, self.closed = self, 1, None
        self.on_content: Any = None
        self.acks: list[tuple[int, bool]] = []

    def open_channel(self) -> _Broker:
        return self

    def expect(self) -> None: ...
    def tell(self, what: object) -> None: ...
    def close(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.acks += [(each.delivery_tag, each.multiple) for each in frames(data)]


def _handed_over(count: int, prefetch: int) -> tuple[Flow, _Broker]:
    flow, broker = Flow(Slice("orders", 0, 1), "queue", lambda flow, size: None), _Broker()
    flow.open(broker, prefetch, lambda flow, reason: None)  # type: ignore[arg-type]
    properties = header.ContentHeader(0, 0, commands.Basic.Properties()).marshal()
    for tag in range(1, count + 1):
        deliver = frame.marshal(commands.Basic.Deliver("t", tag, False, "", "k"), 1)[7:-1]
        broker.on_content(deliver, properties, b"")
    flow.hand_over(count, 1000, whole=True)
    return flow, broker


async def _acknowledged(broker: _Broker, *wanted: tuple[int, bool]) -> None:
    async with asyncio.timeout(5):
        while len(broker.acks) < len(wanted):
            await asyncio.sleep(0.01)
    assert broker.acks == list(wanted)


async def test_what_was_settled_out_of_turn_is_acknowledged_with_what_lies_before_it() -> None:
    flow, broker = _handed_over(6, 100)
    assert flow.settle([1, 2, 4])[0] == 3
    flow.settle([0])
    assert broker.acks == []
    await _acknowledged(broker, (3, True))
    flow.settle([3, 5])
    await _acknowledged(broker, (3, True), (6, True))
    assert flow.idle


async def test_a_broker_that_has_given_much_is_told_at_once() -> None:
    flow, broker = _handed_over(6, 16)
    flow.settle([0, 1, 2])
    assert broker.acks == []
    flow.settle([3])
    assert broker.acks == [(4, True)]


async def test_a_message_that_takes_long_keeps_no_other_unacknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventkeel.transports.rabbitmq.flow.LATE", 0.02)
    flow, broker = _handed_over(4, 100)
    flow.settle([1, 3])
    await _acknowledged(broker, (2, False), (4, False))


async def test_a_message_that_takes_long_does_not_use_up_what_the_broker_gives() -> None:
    flow, broker = _handed_over(5, 4)
    flow.settle([1, 2, 3])
    assert broker.acks == []
    flow.settle([4])
    assert broker.acks == [(2, False), (3, False), (4, False), (5, False)]


async def test_what_was_settled_is_acknowledged_before_its_channel_is_closed() -> None:
    flow, broker = _handed_over(4, 100)
    flow.settle([0, 2])
    flow.close()
    assert broker.acks == [(1, True), (3, False)]


class _Bindings:
    """A management API that says this, or nothing."""

    def __init__(self, known: set[Binding] | None) -> None:
        self.known = known

    async def bindings(self) -> set[Binding] | None:
        return self.known


def _looking(known: set[Binding] | None) -> tuple[Declarer, _Bindings]:
    management = _Bindings(known)
    return Declarer(parse("//here"), None, None, management), management  # type: ignore[arg-type]


def _bindings(*shards: int) -> set[Binding]:
    found = {("orders", "billing.orders.g1", "#", "exchange")}
    for shard in shards:
        queue = f"billing.orders.g1.{shard}"
        found |= {("billing.orders.g1", queue, "1", "exchange"), (queue, queue, "", "queue")}
    return found


async def test_a_look_that_gets_no_answer_does_not_heal_a_lost_binding() -> None:
    declarer, management = _looking(_bindings(0))
    generation = Generation(number=1, shards=2, past=False, at=0.0)
    assert "billing.orders.g1.1" in await declarer._lost_bindings("billing", "orders", generation)
    management.known = None
    assert "billing.orders.g1.1" in await declarer._lost_bindings("billing", "orders", generation)
    management.known = _bindings(0, 1)
    assert await declarer._lost_bindings("billing", "orders", generation) == ""


async def test_queues_from_before_each_had_an_exchange_are_as_they_should_be() -> None:
    old: Binding = ("billing.orders.g1", "billing.orders.g1.0", "1", "queue")
    generation = Generation(number=1, shards=1, past=False, at=0.0)
    declarer, management = _looking({*_bindings(), old})
    assert await declarer._lost_bindings("billing", "orders", generation) == ""
    management.known = _bindings()
    assert "billing.orders.g1.0" in await declarer._lost_bindings("billing", "orders", generation)


def test_who_is_kept_by_a_silent_host_goes_on_with_the_next() -> None:
    line = Line(parse("//a,b,c"), "test")
    tried = [next(line._round()) for _ in range(3)]  # each one was cancelled at its first host
    assert sorted(tried) == [0, 1, 2]
    assert sorted(line._round()) == [0, 1, 2]
