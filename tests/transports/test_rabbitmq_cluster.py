"""A RabbitMQ cluster of three: copies on all nodes, leaders and clients spread, and going on when a node is killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest

from eventkeel.errors import BrokerUnavailable
from eventkeel.message import Delivery
from eventkeel.ports.transport import Deliveries, Lost, Sent, Span, Transport
from eventkeel.testing.transport_kit import PATIENCE, Brokerage, Member, eventually, message, numbers, send
from eventkeel.transports.rabbitmq import RabbitTransport
from tests.transports.test_rabbitmq import QUICK
from tests.transports.test_rabbitmq_outages import Traffic, begin_again
from tools.realservers import Servers
from tools.realservers.rabbitmq_cluster import Node

# A node of three that dies under load is in every run: tests/crash/test_crash.py.
pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(240)]


class Place:
    """A cluster of this test's own, and transports to it: to all nodes, or to some."""

    def __init__(self, servers: Servers, stack: AsyncExitStack) -> None:
        self.nodes, self._stack = servers.nodes, stack
        self._prefix = f"{uuid4().hex[:8]}."

    def broker(self, *nodes: Node, options: str = "") -> Brokerage:
        hosts = ",".join(f"127.0.0.1:{node.port()}" for node in nodes or self.nodes)
        management = ",".join(node.management for node in self.nodes)
        rest = f"?prefix={self._prefix}&{QUICK}&management={management}{options}"

        async def make() -> RabbitTransport:
            return RabbitTransport(f"//guest:guest@{hosts}/{rest}")

        return Brokerage(make, self._stack)

    def queues(self) -> list[dict[str, Any]]:
        found = cast("list[dict[str, Any]]", self.nodes[0].api("queues?columns=name,type,members,leader"))
        return [each for each in found if each["name"].startswith(self._prefix)]

    def leader(self, queue: str) -> Node:
        """Of the queue whose name ends like this."""
        [found] = (each for each in self.queues() if each["name"].endswith(queue))
        return next(node for node in self.nodes if node.node == found["leader"])


@asynccontextmanager
async def _place(servers: Servers) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(servers, stack)


@pytest.fixture
def servers(own_rabbitmq_cluster: Servers) -> Servers:
    return own_rabbitmq_cluster


async def test_whatever_is_declared_has_copies_on_all_nodes_and_leaders_on_each(servers: Servers) -> None:
    async with _place(servers) as place:
        await place.broker().ready()

        async def told() -> bool:
            return all("members" in each for each in await asyncio.to_thread(place.queues))

        await eventually(told)  # the management API counts every few seconds
        found = await asyncio.to_thread(place.queues)
        assert {each["type"] for each in found} == {"quorum", "stream"}
        assert {len(each["members"]) for each in found} == {3}
        assert {each["leader"] for each in found if each["type"] == "quorum"} == {node.node for node in place.nodes}


async def test_streams_with_one_copy_are_read_whichever_node_lets_us_in(servers: Servers) -> None:
    async with _place(servers) as place:
        broker = place.broker(options="&replication=1")
        await send(await broker.ready(), [message(n) for n in range(5)])
        for _ in range(4):  # the first host is any of the three
            transport = await broker.ready()
            assert len(await transport.slices("billing", ["orders"])) > 1
            got = [each async for page in transport.read("orders", Span()) for each in page]
            assert numbers(got) == list(range(5))
            late = f"late-{uuid4().hex[:4]}"
            transport = await broker.ready("billing", late)
            assert await past(await broker.member(transport, late), 5) == list(range(5))


async def past(member: Member, count: int) -> list[int]:
    """What a group gets that came after its messages."""
    got: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            arrival = await member.subscription.next()
            if isinstance(arrival, Lost):
                for slice in arrival.slices:
                    await begin_again(member, slice)
            elif isinstance(arrival, Deliveries):
                got += numbers(arrival.items)
    return got


async def whole_history(transport: Transport) -> list[Delivery]:
    """As soon as a stream of which a node has died is read again."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(BrokerUnavailable):
                return [each async for page in transport.read("orders", Span()) for each in page]


async def test_a_node_that_dies_under_traffic_is_done_without(servers: Servers) -> None:
    async with _place(servers) as place:
        broker = place.broker()
        transport = await broker.ready()
        traffic = Traffic(transport, await broker.member(transport))
        for _ in range(2):
            await traffic.until_sent(200)
            connection = cast("RabbitTransport", transport).consuming.connection
            assert connection is not None
            dead = place.nodes[connection.host]
            await asyncio.to_thread(dead.kill9)
            print(f"{await traffic.until_sent(200):.1f} s without {dead.name}")
            sent = traffic.sent
            history = await whole_history(transport)
            assert set(range(sent - 400, sent)) <= set(numbers(history))
            await asyncio.to_thread(dead.start)
        await traffic.end()


async def test_a_channel_that_met_a_queue_without_leader_is_replaced(servers: Servers) -> None:
    async with _place(servers) as place:
        await place.broker().ready()
        queue = "orders.g1.0"
        dead = await asyncio.to_thread(place.leader, queue)
        alive = [node for node in place.nodes if node is not dead]
        transport = await place.broker(*alive).transport()
        keys = [b"key-%d" % number for number in range(48)]
        await asyncio.to_thread(dead.kill9)

        async def all_taken() -> bool:
            outcomes = await transport.publish([message(n, key=key) for n, key in enumerate(keys)], PATIENCE)
            return all(isinstance(each, Sent) for each in outcomes)

        await eventually(all_taken)  # while the node is still dead
