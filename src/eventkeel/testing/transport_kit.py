"""What the transport suite is made of: a broker, its members, and patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import pytest

from eventkeel.message import Delivery, Headers, Outgoing, Position, Slice
from eventkeel.ports.transport import (
    Assigned,
    Broken,
    Budget,
    Deliveries,
    Finding,
    GroupWant,
    Sent,
    Subscription,
    TopicWant,
    Topology,
    Transport,
)

scenario = pytest.mark.scenario
"""Says which scenarios of the catalogue a test proves: eventkeel.testing.conformance."""

PATIENCE = 20.0
"""Seconds after which something that has to happen counts as not happening."""
QUIET = 0.6
"""Seconds in which something that must not happen has its chance."""
PARTITIONS = 4


def message(number: int, *, topic: str = "orders", key: bytes | None = b"k", body: bytes | None = None) -> Outgoing:
    return Outgoing(topic, key, Headers([("n", b"%d" % number)]), b"%d" % number if body is None else body)


def numbers(deliveries: Iterable[Delivery]) -> list[int]:
    return [int(each.headers.text("n") or -1) for each in deliveries]


def keys_of_all_partitions() -> list[bytes]:
    return [b"key-%d" % number for number in range(16 * PARTITIONS)]


class Member:
    """A subscription with the patience and the bookkeeping that a test needs."""

    def __init__(self, transport: Transport, subscription: Subscription, slices: Sequence[Slice]) -> None:
        self.transport, self.subscription, self.slices = transport, subscription, tuple(slices)
        self.incarnations: dict[Slice, str] = {}
        self._one_by_one: set[Slice] = set()
        self._ahead: list[Delivery] = []
        self._assigned: set[Slice] = set()

    async def begin(self, at: Mapping[Slice, Position] | None = None) -> None:
        if self.transport.caps.assigns:
            while set(self.slices) - self._assigned:
                arrival = await asyncio.wait_for(self.subscription.next(), PATIENCE)
                assert isinstance(arrival, Assigned), arrival
                self._assigned.update(arrival.slices)
        for slice in self.slices:
            await self.subscription.begin(slice, (at or {}).get(slice))

    async def take(self, count: int) -> list[Delivery]:
        """The next ``count`` deliveries; fails where they do not come."""
        async with asyncio.timeout(PATIENCE):
            while len(self._ahead) < count:
                arrival = await self.subscription.next()
                assert isinstance(arrival, Deliveries), arrival
                self.note(arrival)
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return taken

    def note(self, arrival: Deliveries) -> None:
        assert arrival.items, "an empty list of deliveries"
        assert all(each.slice == arrival.slice for each in arrival.items)
        self.incarnations[arrival.slice] = arrival.incarnation
        if arrival.each:
            self._one_by_one.add(arrival.slice)
        self._ahead += arrival.items

    async def quiet(self) -> None:
        """Nothing more comes."""
        assert not self._ahead, numbers(self._ahead)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                while True:
                    arrival = await self.subscription.next()
                    assert not isinstance(arrival, (Deliveries, Broken)), arrival
                    if isinstance(arrival, Assigned):
                        self._assigned.update(arrival.slices)

    def after(self, delivery: Delivery) -> Position:
        return Position(delivery.position + 1, self.incarnations[delivery.slice])

    async def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Say that these are finished, and all before them where the slice is settled by its prefix."""
        of: dict[Slice, list[Position]] = {}
        for each in deliveries:
            at = each.position if each.slice in self._one_by_one else each.position + 1
            of.setdefault(each.slice, []).append(Position(at, self.incarnations[each.slice]))
        for slice, positions in of.items():
            await self.subscription.settle(slice, positions if slice in self._one_by_one else [max(positions)])


class Brokerage:
    """Opens transports to the one broker of a test, and closes them."""

    def __init__(self, make: Callable[[], Awaitable[Transport]], stack: contextlib.AsyncExitStack) -> None:
        self._make, self._stack = make, stack

    async def transport(self) -> Transport:
        transport = await self._make()
        await transport.open()
        self._stack.push_async_callback(transport.close, 5.0)
        return transport

    async def ready(self, *groups: str, topics: Sequence[str] = ("orders",)) -> Transport:
        """A transport on which the topics and the groups exist."""
        transport = await self.transport()
        wanted = groups or ("billing",)
        findings = await transport.topology(
            Topology(
                tuple(TopicWant(topic, PARTITIONS) for topic in topics),
                tuple(GroupWant(group, f"store of {group}", tuple(topics)) for group in wanted),
            ),
            apply=True,
        )
        assert all(each.kind != "refused" for each in findings), findings
        return transport

    async def member(
        self,
        transport: Transport,
        group: str = "billing",
        *,
        topics: Sequence[str] = ("orders",),
        budget: Budget | None = None,
        at: Mapping[Slice, Position] | None = None,
        begin: bool = True,
    ) -> Member:
        subscription = transport.subscribe(group, topics, budget or Budget())
        self._stack.push_async_callback(subscription.close, 5.0)
        member = Member(transport, subscription, await transport.slices(group, topics))
        if begin:
            await member.begin(at)
        return member


async def send(transport: Transport, messages: Iterable[Outgoing], wave: int = 100) -> None:
    """Publish in waves; every message has to be taken."""
    todo = list(messages)
    for start in range(0, len(todo), wave):
        outcomes = await transport.publish(todo[start : start + wave], PATIENCE)
        assert all(isinstance(each, Sent) for each in outcomes), [e for e in outcomes if not isinstance(e, Sent)][:3]


def refusals(findings: Iterable[Finding]) -> list[Finding]:
    return [each for each in findings if each.kind == "refused"]


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until ``condition`` gives something true."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.02)
