"""The RabbitMQ transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pika  # type: ignore[import-untyped]
import pytest
from pamqp import commands

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Headers, Outgoing
from eventkeel.ports.transport import Deliveries, Lost, Unknown
from eventkeel.testing.transport_kit import PATIENCE, Brokerage, message, numbers, send
from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.rabbitmq import RabbitTransport, publisher, subscription
from eventkeel.transports.rabbitmq.flow import TAG
from eventkeel.transports.rabbitmq.topology import Declarer
from tests.rabbit import wipe

QUICK = "catch_up_ms=300&settle_ms=0"
"""On one machine nothing is under way for longer; and nobody kills the broker that all tests share."""


def url_of(url: str, place: Path) -> str:
    """Where names are this test's own, on the broker that all tests share."""
    prefix = f"t{zlib.crc32(str(place).encode()):08x}."
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}&{QUICK}"


def own(url: str, place: Path, more: str = "") -> RabbitTransport:
    return RabbitTransport(url_of(url, place).removeprefix("amqp:") + more)


class TestRabbitMQ(TransportSuite):
    broker = "rabbitmq"

    @pytest.fixture(autouse=True)
    async def _broker(self, rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[None]:
        self.url = rabbitmq_url
        yield
        await wipe(url_of(rabbitmq_url, tmp_path))

    async def make(self, place: Path) -> RabbitTransport:
        return own(self.url, place)


# ------------------------------------------------------------------ its own ways


@pytest.fixture
async def place(rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[Brokerage]:
    async def make() -> RabbitTransport:
        return own(rabbitmq_url, tmp_path)

    async with contextlib.AsyncExitStack() as stack:
        yield Brokerage(make, stack)
    await wipe(url_of(rabbitmq_url, tmp_path))


@contextlib.contextmanager
def pika_channel(url: str) -> Iterator[Any]:
    """A program on pika, which knows nothing of us."""
    connection = pika.BlockingConnection(pika.URLParameters(url.partition("?")[0].rstrip("/") + "/%2f"))
    try:
        yield connection.channel()
    finally:
        connection.close()


async def test_a_program_on_pika_is_read_with_its_routing_key_as_key(place: Brokerage, rabbitmq_url: str) -> None:
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    member = await place.member(transport)

    def publish() -> None:
        with pika_channel(rabbitmq_url) as channel:
            channel.confirm_delivery()
            exchange = transport.options.exchange("orders")
            channel.basic_publish(exchange, "A1", b'{"order_id": "A1"}', mandatory=True)
            headers = {"cloudEvents:id": "7", "cloudEvents_type": "Paid", "n": 12, "deep": {"a": [1, None]}}
            channel.basic_publish(exchange, "A1", b"{}", pika.BasicProperties(headers=headers), mandatory=True)

    await asyncio.to_thread(publish)
    plain, rich = await member.take(2)
    assert (plain.key, plain.body, plain.headers.pairs, plain.time) == (b"A1", b'{"order_id": "A1"}', (), 0.0)
    assert rich.headers.text("cloudEvents:id") == "7"
    assert rich.headers.text("n") == "12"
    assert rich.headers.text("deep")


async def test_a_program_on_pika_reads_us_from_a_queue_of_its_own(place: Brokerage, rabbitmq_url: str) -> None:
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    exchange, queue = transport.options.exchange("orders"), transport.options.prefix + "theirs"
    with pika_channel(rabbitmq_url) as channel:
        channel.queue_declare(queue, exclusive=True)
        channel.queue_bind(queue, exchange, "#")
        headers = Headers([("content-type", b"application/json"), ("ce_id", b"9"), ("ce_type", b"Paid")])
        await send(transport, [Outgoing("orders", b"A1", headers, b"{}")])
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        assert (method.routing_key, body) == ("A1", b"{}")
        assert properties.headers == {"ce-id": "9", "ce-type": "Paid"}
        assert (properties.content_type, properties.message_id, properties.delivery_mode) == (
            "application/json",
            "9",
            2,
        )


async def test_who_takes_over_gets_what_was_out_in_its_order(place: Brokerage) -> None:
    """The second consumer of a queue waits until the first one's channel is closed, and nothing passes what was out."""
    transport = await place.ready()
    first = await place.member(transport)
    await send(transport, [message(n) for n in range(50)])
    got = await first.take(50)
    await first.settle([got[3], got[7]])
    second = await place.member(await place.transport())
    await second.quiet()
    await first.subscription.close(5.0)
    again = numbers(await second.take(48))
    assert again == [n for n in range(50) if n not in (3, 7)]


async def test_an_idle_consumer_of_a_queue_that_is_not_empty_is_built_anew(
    place: Brokerage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(subscription, "IDLE", 0.5)
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    member = await place.member(transport)
    for flow in member.subscription.flows.values():  # type: ignore[attr-defined]
        await flow._channel.ask(commands.Basic.Cancel(consumer_tag=TAG), commands.Basic.CancelOk)
    await send(transport, [message(1)])
    async with asyncio.timeout(PATIENCE):
        while True:
            arrival = await member.subscription.next()
            if isinstance(arrival, Lost):
                for slice in arrival.slices:
                    await member.subscription.begin(slice, None)
            else:
                assert isinstance(arrival, Deliveries), arrival
                assert numbers(arrival.items) == [1]
                return


async def test_a_channel_that_confirms_nothing_is_replaced_long_before_the_deadline(
    place: Brokerage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_DEAF", 0.3)
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    await send(transport, [message(0)])
    deaf = transport.publisher._channel
    assert deaf is not None
    deaf.on_confirm = lambda payload: None
    [outcome] = await transport.publish([message(1)], PATIENCE)
    assert outcome == Unknown("the channel was closed: no confirms for 0.3 s")
    await send(transport, [message(2)])


async def test_a_node_that_confirms_nothing_on_a_second_channel_either_is_left(
    place: Brokerage, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    await send(transport, [message(0)])
    assert transport.publisher._channel is not None
    transport.publisher._channel.on_confirm = lambda payload: None
    monkeypatch.setattr(publisher, "_DEAF", 0.2)
    monkeypatch.setattr(publisher.Publisher, "_confirmed", lambda self, payload: None)
    said = [(await transport.publish([message(n)], 2.0))[0] for n in (1, 2)]
    assert said[0] == Unknown("the channel was closed: no confirms for 0.2 s")
    assert isinstance(said[1], Unknown) and "no confirms in time" in str(said[1])
    monkeypatch.undo()
    await send(transport, [message(3)])


async def test_a_password_that_is_wrong_is_told_and_not_shown(rabbitmq_url: str) -> None:
    wrong = rabbitmq_url.removeprefix("amqp:").replace("guest:guest@", "guest:letmein@")
    with pytest.raises(ConfigurationError, match="user and password") as refused:
        await RabbitTransport(wrong).open()
    assert "letmein" not in str(refused.value)


async def test_a_virtual_host_that_does_not_exist_is_told(rabbitmq_url: str) -> None:
    wrong = rabbitmq_url.removeprefix("amqp:").partition("?")[0].rstrip("/") + "/nowhere"
    with pytest.raises(ConfigurationError, match="virtual host"):
        await RabbitTransport(wrong).open()


async def test_nobody_there_is_told_soon() -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await RabbitTransport("//127.0.0.1:1").open()


async def test_without_the_hash_plugin_a_group_has_one_queue(place: Brokerage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_here(self: Declarer) -> bool:
        self._hashes = False
        return False

    monkeypatch.setattr(Declarer, "look_for_hashes", none_here)
    transport = await place.ready()
    member = await place.member(transport)
    assert len(member.slices) == 1
    await send(transport, [message(n, key=b"%d" % n) for n in range(20)])
    assert numbers(await member.take(20)) == list(range(20))
