"""Apache Kafka as a broker: what every part of the adapter shares, and the port's methods."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence

from confluent_kafka import KafkaException

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Delivery, Outgoing, Slice
from eventkeel.ports.clock import Clock
from eventkeel.ports.transport import Budget, Caps, Finding, Outcome, SliceLag, Span, Topology
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.admin import Admin, Topic
from eventkeel.transports.kafka.asking import STORE, Asking
from eventkeel.transports.kafka.producer import Publisher
from eventkeel.transports.kafka.settings import MAX_KEY, parse
from eventkeel.transports.kafka.subscription import KafkaSubscription

_HELLO = 5.0
"""Seconds in which a broker has to answer when it is opened."""


class KafkaTransport:
    """The brokers at ``kafka://host:port,…?option=value``. Implements ``ports.transport.Transport``.

    What ``publish`` has confirmed is on every in-sync replica. Every process opens its own; it must not be
    carried through a fork.
    """

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        """``url`` may begin with ``//``. ``clock`` is not asked: the broker's time counts."""
        self.options = parse(url)
        self._caps = Caps(
            settle="prefix",
            log=True,
            ordered_pipeline=True,
            assigns=True,
            max_body=self.options.max_body,
            max_key=MAX_KEY,
        )
        self._admin: Admin | None = None
        self._asking: Asking | None = None
        self._publisher: Publisher | None = None
        self._pid = 0
        self._subscriptions: list[KafkaSubscription] = []

    @property
    def caps(self) -> Caps:
        return self._caps

    # -- life

    async def open(self) -> None:
        """Raises BrokerUnavailable where nothing answers, ConfigurationError where the options are wrong."""
        if self._publisher is not None:
            return
        options = self.options
        try:
            admin = Admin(options)
        except (KafkaException, TypeError, ValueError) as error:
            said = options.masked(errors.option(errors.text(error)))
            raise ConfigurationError(f"the options of broker {options.name} are not valid: {said}") from error
        await admin.hello(_HELLO)
        self._pid, self._admin = os.getpid(), admin
        self._asking = Asking(options, admin)
        self._publisher = Publisher(options, admin, self._caps.max_body)

    async def close(self, deadline: float) -> None:
        """Close the subscriptions, wait for what is being sent, for up to ``deadline`` seconds. Twice is once."""
        if self._publisher is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        publisher, self._publisher = self._publisher, None
        for subscription in tuple(self._subscriptions):
            await subscription.close(until - loop.time())
        await publisher.close(max(0.0, until - loop.time()))
        if self._asking is not None:
            self._asking.close()
        if self._admin is not None:
            self._admin.close()
        self._admin = self._asking = None

    def alive(self) -> None:
        """Raises where the transport cannot be used: not open, or inherited through a fork."""
        if self._publisher is None:
            raise BrokerUnavailable(f"broker {self.options.name} is not open")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"broker {self.options.name} was opened before a fork; open it in each process (its threads do not "
                "survive a fork)"
            )

    @property
    def admin(self) -> Admin:
        self.alive()
        assert self._admin is not None
        return self._admin

    @property
    def asking(self) -> Asking:
        self.alive()
        assert self._asking is not None
        return self._asking

    # -- the port

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        """See the port. A group is bound to its store by the words that go with its committed positions."""
        return await self.asking.topology(want, apply=apply)

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> Sequence[Outcome]:
        """See the port. Raises BrokerUnavailable only where the transport is not open."""
        self.alive()
        assert self._publisher is not None
        return await self._publisher.publish(wave, deadline) if wave else []

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> KafkaSubscription:
        self.alive()
        subscription = KafkaSubscription(self, group, topics, budget)
        self._subscriptions.append(subscription)
        return subscription

    async def slices(self, group: str, topics: Sequence[str]) -> Sequence[Slice]:
        """All partitions of ``topics``. Raises ConfigurationError for a topic that does not exist."""
        return await self.asking.slices(topics)

    async def lag(self, group: str) -> Sequence[SliceLag]:
        """One for each partition of the topics that the group has committed for, or was declared with here."""
        return await self.asking.lag(group)

    def read(self, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
        """One partition after the other, up to where each ended when it was reached.

        Raises ConfigurationError for a topic or partition that does not exist.
        """
        return self.asking.read(topic, span)

    # -- for its subscriptions

    def forget(self, subscription: KafkaSubscription) -> None:
        """It was closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def words(self, group: str) -> str:
        """What goes with every position that ``group`` commits."""
        store = self._asking.stores.get(group, "") if self._asking is not None else ""
        return STORE + store if store else ""

    async def look_at(self, topics: Iterable[str]) -> dict[str, Topic]:
        """Topics as they are now, those that exist."""
        names = {self.options.on_broker(topic): topic for topic in topics}
        return {names[name]: found for name, found in (await self.admin.topics(names)).items()}

    async def topic(self, topic: str) -> Topic | None:
        return (await self.look_at([topic])).get(topic)
