"""RabbitMQ as a broker: what every part of the adapter shares, and the port's methods."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Delivery, Outgoing, Slice
from eventkeel.ports.clock import Clock
from eventkeel.ports.transport import Budget, Caps, Finding, Outcome, SliceLag, Span, Topology
from eventkeel.transports.rabbitmq.asking import history, lags
from eventkeel.transports.rabbitmq.connection import Line
from eventkeel.transports.rabbitmq.flow import Flow
from eventkeel.transports.rabbitmq.management import Management
from eventkeel.transports.rabbitmq.publisher import Publisher
from eventkeel.transports.rabbitmq.registry import Registry
from eventkeel.transports.rabbitmq.settings import MAX_KEY, parse
from eventkeel.transports.rabbitmq.subscription import RabbitSubscription
from eventkeel.transports.rabbitmq.topology import Declarer


class RabbitTransport:
    """The broker at ``amqp://user:password@host:port/vhost?option=value``. Implements ``ports.transport.Transport``.

    What ``publish`` has confirmed is on a majority of the members of every queue that wants it. Three connections:
    for publishing, which an alarm may block; for consuming, which is not read from while too much lies ready; for
    questions.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, secure: bool = False) -> None:
        """``url`` may begin with ``//``. ``clock`` is not asked: heartbeats and waits are real time."""
        self.options = parse(url, secure=secure)
        self._open = False
        self._pid = 0
        self._subscriptions: list[RabbitSubscription] = []

    @property
    def caps(self) -> Caps:
        return Caps(
            settle="each",
            log=True,
            ordered_pipeline=False,
            assigns=False,
            max_body=self.publisher.max_body if self._open else self.options.max_body,
            max_key=MAX_KEY,
            memory=self.options.history_age,
        )

    # -- life

    async def open(self) -> None:
        """Raises BrokerUnavailable where nothing answers, ConfigurationError where we are not let in."""
        if self._open:
            return
        options = self.options
        self.asking, self.consuming = Line(options, "ask"), Line(options, "consume")
        self.publisher = Publisher(options, Line(options, "publish"))
        self.registry = Registry(options, self.asking, self.publisher)
        self.management = Management(options)
        self.declarer = Declarer(options, self.asking, self.registry, self.management)
        connection = await self.asking.get()
        self.management.cluster = connection.cluster
        self._pid, self._open = os.getpid(), True

    async def close(self, deadline: float) -> None:
        """Close the subscriptions, wait for open confirms, for up to ``deadline`` seconds. Twice is once."""
        if not self._open:
            return
        self._open = False
        for subscription in tuple(self._subscriptions):
            await subscription.close(deadline / 4)
        await self.publisher.close(deadline / 2)
        await asyncio.gather(self.consuming.close(deadline / 4), self.asking.close(deadline / 4))

    def alive(self) -> None:
        """Raises where the transport cannot be used: not open, or inherited through a fork."""
        if not self._open:
            raise BrokerUnavailable(f"broker {self.options.name} is not open")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"broker {self.options.name} was opened before a fork; open it in each process (two processes must "
                "not share a connection)"
            )

    # -- the port

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        """See the port. A group is bound to its store by a record in the registry."""
        self.alive()
        findings = await self.declarer.topology(want, apply=apply)
        for topic in want.topics:
            self.publisher.forget(topic.name)
        return findings

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> Sequence[Outcome]:
        """See the port. Raises BrokerUnavailable only where the transport is not open."""
        self.alive()
        return await self.publisher.publish(wave, deadline) if wave else []

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> RabbitSubscription:
        self.alive()
        subscription = RabbitSubscription(self, group, topics, budget)
        self._subscriptions.append(subscription)
        return subscription

    async def slices(self, group: str, topics: Sequence[str]) -> Sequence[Slice]:
        """What is consumed now: an older generation until it is drained, then the history where the group has to read
        its past, then the newest generation. Raises ConfigurationError for a topic that does not exist."""
        self.alive()
        return await self.declarer.slices(group, topics)

    async def lag(self, group: str) -> Sequence[SliceLag]:
        """One for each queue of the group. ``settled`` counts what this process has settled of it; ``oldest`` is known
        for what this process holds."""
        self.alive()
        return await lags(self, group)

    def read(self, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
        """The topic's history, as one partition, up to where it ends now. Raises ConfigurationError for a topic or a
        partition that does not exist."""
        self.alive()
        return history(self, topic, span)

    async def refill(self, group: str, topic: str, partitions: int | None = None) -> str:
        """See ``Declarer.refill``."""
        self.alive()
        return await self.declarer.refill(group, topic, partitions)

    # -- for its parts

    def forget(self, subscription: RabbitSubscription) -> None:
        """It was closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def flow(self, group: str, slice: Slice) -> Flow | None:
        """A slice as this process consumes it."""
        for subscription in self._subscriptions:
            if subscription.group == group and slice in subscription.flows:
                return subscription.flows[slice]
        return None


def secure(url: str, *, clock: Clock | None = None) -> RabbitTransport:
    """The same over TLS, for ``amqps://``."""
    return RabbitTransport(url, clock=clock, secure=True)
