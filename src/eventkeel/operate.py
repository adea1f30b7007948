"""What operators do from outside to a service that may be running elsewhere: publish, ask, act."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from eventkeel import codec
from eventkeel.admin.access import Actor
from eventkeel.admin.act import Act
from eventkeel.admin.ask import Ask
from eventkeel.app import Runtime, open_catalogue, open_transport, store_of
from eventkeel.config import Config
from eventkeel.errors import BrokerUnavailable, ConfigurationError, PublishError
from eventkeel.event import EventSpec, declared, topics
from eventkeel.message import Headers, Outgoing
from eventkeel.ports.clock import SystemClock
from eventkeel.ports.store import ConsumerName, Schema
from eventkeel.ports.transport import Refills, Refused, TopicWant, Topology, Unknown, Unrouted
from eventkeel.service import Service

RELAY_PATIENCE = 1.0
"""Seconds that a running worker gets to send what we have put into the outbox, before we send it ourselves."""
DEADLINE = 10.0


class Desk(NamedTuple):
    """One service, open for questions and actions of one actor."""

    ask: Ask
    act: Act


@contextlib.asynccontextmanager
async def desk(service: Service, config: Config, actor: Actor) -> AsyncIterator[Desk]:
    """Open a service's store and broker beside whatever runs; consumes and changes nothing by itself.

    Raises ConfigurationError where the service has never run on them, AccessDenied.
    """
    clock = SystemClock()
    store, transport = store_of(service, config), open_transport(config.broker_url)
    for what, part in ((f"database of service {service.name}", store), ("broker", transport)):
        _exists(what, part)
    await store.open()
    try:
        await store.migrate(Schema(service.name, service.group, consumers=_names(service)), apply=False)
        await transport.open()
        try:
            catalogue = open_catalogue(service, config, store)
            ask = Ask(service.name, service.group, catalogue, transport, clock, actor)
            yield Desk(ask, Act(service.name, catalogue, clock, actor))
        finally:
            await transport.close(1.0)
    finally:
        await store.close()


def _exists(what: str, part: object) -> None:
    """Opening would make an empty one, and every answer would be a wrong 'nothing'."""
    path = getattr(part, "path", None)
    if isinstance(path, Path) and not path.exists():
        raise ConfigurationError(
            f"there is no {what} at {path}; nothing has run there yet. --data, --broker and --store say where it is "
            "('eventkeel config show' prints what is in force)"
        )


def _names(service: Service) -> tuple[ConsumerName, ...]:
    return tuple(
        ConsumerName(consumer.name, tuple(f"{spec.topic}/{spec.type}" for spec in consumer.specs))
        for consumer in service.consumers
    )


# ------------------------------------------------------------------ publish


class Published(NamedTuple):
    """An event that is durable in the service's outbox; ``sent``: the broker has it too."""

    id: UUID
    topic: str
    type: str
    sent: bool


async def publish(service: Service, config: Config, type: str, body: bytes) -> Published:
    """Publish one event as the service would, through its outbox; ``type``: its name, or ``topic/name``.

    Raises ConfigurationError (no such type), MalformedMessage (the body is not that event), PublishError.
    """
    spec = find_type(type)
    event = codec.read_json(spec, body)
    runtime = Runtime(service, config, mode="publisher")
    await runtime.start()
    try:
        async with service.transaction() as tx:
            id = tx.publish(event)
        sent = await _relayed(runtime)
    finally:
        await runtime.stop()
    if not sent:
        sent = await _relay(service, config)
    return Published(id, spec.topic, spec.type, sent)


def find_type(type: str) -> EventSpec:
    """The declared event class called ``type`` or ``topic/type``. Raises ConfigurationError."""
    specs = [spec for topic in topics() for spec in declared(topic).values()]
    found = [spec for spec in specs if type in (spec.type, f"{spec.topic}/{spec.type}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigurationError(f"{type} is declared on several topics; write one of: {_listed(found)}")
    near = get_close_matches(type, [spec.type for spec in specs], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {_listed(specs) or 'none'}"
    raise ConfigurationError(f"no event class called {type!r} is declared by what the service imports; {hint}")


def _listed(specs: Sequence[EventSpec]) -> str:
    return ", ".join(sorted(f"{spec.topic}/{spec.type}" for spec in specs))


async def _relayed(runtime: Runtime) -> bool:
    """Has a worker that runs elsewhere emptied the outbox?"""
    shards = range(runtime.store.caps.relay_shards)
    try:
        async with asyncio.timeout(RELAY_PATIENCE):
            while await runtime.store.unsent(shards, 1):
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


async def _relay(service: Service, config: Config) -> bool:
    """Nobody runs: send the outbox from here."""
    runtime = Runtime(service, config, mode="relay")
    await runtime.start()
    try:
        return await _relayed(runtime)
    finally:
        await runtime.stop()


async def publish_raw(
    config: Config,
    topic: str,
    key: bytes | None,
    headers: Sequence[tuple[str, bytes]],
    body: bytes,
    *,
    create: bool = False,
) -> None:
    """Put one message on the broker exactly as given, as a foreign producer would: no outbox, no envelope, no
    check. ``create``: make the topic where it is missing.

    Raises ConfigurationError, PublishError (the broker refuses it), BrokerUnavailable.
    """
    transport = open_transport(config.broker_url)
    if not create:
        _exists("broker", transport)
    await transport.open()
    try:
        if create:
            await transport.topology(Topology(topics=(TopicWant(topic, config.partitions),)), apply=True)
        (outcome,) = await transport.publish([Outgoing(topic, key, Headers(headers), body)], DEADLINE)
    finally:
        await transport.close(1.0)
    if isinstance(outcome, Refused | Unrouted):
        raise PublishError(f"the broker refused the message: {outcome.reason}")
    if isinstance(outcome, Unknown):
        raise BrokerUnavailable(f"the broker gave no answer, and may or may not have the message: {outcome.reason}")


# ------------------------------------------------------------------ refill


async def refill(service: Service, config: Config, topics: Sequence[str], actor: Actor) -> list[str]:
    """Give a service's group new queues for ``topics`` (none: for all that it handles), ``config.partitions`` of them,
    which begin with what the topics' histories hold; the inbox knows what was handled already. A line for each.

    Raises ConfigurationError (not such a broker, no such topic), AccessDenied, BrokerUnavailable.
    """
    actor.require("act", f"give {service.name} new queues")
    handled = service.routes().topics
    for topic in topics:
        if topic not in handled:
            raise ConfigurationError(
                f"service {service.name} handles no topic {topic!r}; it handles {', '.join(handled)}"
            )
    transport = open_transport(config.broker_url)
    if not isinstance(transport, Refills):
        raise ConfigurationError("this broker keeps a log, in which a group has positions: use --start earliest")
    await transport.open()
    try:
        return [await transport.refill(service.group, topic, config.partitions) for topic in topics or handled]
    finally:
        await transport.close(1.0)
