"""Eventkeel's side of the benchmarks on servers: through the public door, with relay, in one process.

The clock runs as the twin's does: from the first message that the subscription hands over until the last outbox row is
confirmed by the broker and removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.job import PARTITIONS, Run
from benchmarks.reference import Confirmed
from benchmarks.servers import Meter, Place, Servers
from benchmarks.where import Sampler
from eventkeel import Service
from eventkeel.app import Runtime, spare_collector
from eventkeel.config import Config
from eventkeel.ports.transport import Arrival, Budget, Deliveries, Subscription

PATIENCE = 240.0


def config(here: Place, **settings: Any) -> Config:
    """What a user says for these servers; the rest is the default."""
    return Config.load(
        {
            "broker": here.broker,
            "store": here.servers.store_of(here.schema),
            "start": "earliest",
            "partitions": PARTITIONS,
            **settings,
        },
        environ={},
        file=None,
    )


class FirstMessage:
    """Starts the clock when the subscription hands over its first messages; costs nothing afterwards."""

    def __init__(self, runtime: Runtime, where: Servers, profile: Sampler | None = None) -> None:
        self._subscribe, self._servers, self._profile = runtime.transport.subscribe, where, profile
        self.meter: Meter | None = None
        runtime.transport.subscribe = self.subscribe  # type: ignore[method-assign]

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> Subscription:
        subscription = self._subscribe(group, topics, budget)
        wait = subscription.next

        async def next() -> Arrival:
            arrival = await wait()
            if isinstance(arrival, Deliveries):
                self.meter = Meter(self._servers)
                if self._profile:
                    self._profile.enable()
                subscription.next = wait  # type: ignore[method-assign]
            return arrival

        subscription.next = next  # type: ignore[method-assign]
        return subscription


async def handle(here: Place, service: Service, profile: Sampler | None = None, **settings: Any) -> Run:
    """Run the service on a filled topic until everything is handled, sent and removed."""
    runtime = Runtime(service, config(here, **settings))
    first, confirmed = FirstMessage(runtime, here.servers, profile), Confirmed(runtime, here.count)
    await runtime.start()
    spare_collector()  # as `eventkeel run` does
    try:
        await until(confirmed.all, runtime)
        assert first.meter is not None
        return first.meter.stop(here.count)
    finally:
        if profile:
            profile.disable()
        await runtime.stop()


async def declare(here: Place) -> None:
    """Make topics, groups and tables, as the first start of the service does."""
    from benchmarks.services import payments

    runtime = Runtime(payments, config(here))
    await runtime.start()
    await runtime.stop()


async def until(event: asyncio.Event, runtime: Runtime) -> None:
    """Wait for it, or raise what ended the service."""
    assert runtime.failure is not None
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([waiting, runtime.failure], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if runtime.failure.done():
        runtime.failure.result()
