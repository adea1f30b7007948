"""What tests leave on a RabbitMQ that they share, removed: hundreds of queues would slow it down for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pamqp import base, commands

from eventkeel.errors import ConfigurationError, EventkeelError
from eventkeel.transports.rabbitmq import RabbitTransport
from eventkeel.transports.rabbitmq.connection import ChannelClosed
from eventkeel.transports.rabbitmq.registry import State
from eventkeel.transports.rabbitmq.settings import Options


async def wipe(url: str) -> None:
    """Delete everything that the registry of ``url`` (with its prefix) names, and the registry."""
    transport = RabbitTransport(url.removeprefix("amqp:"))
    with contextlib.suppress(EventkeelError):
        await transport.open()
        try:
            try:
                state = await transport.registry.sync()
            except ConfigurationError:  # nothing was declared
                return
            connection = await transport.asking.get()
            for delete in _all(transport.options, state):
                channel = await connection.channel()
                with contextlib.suppress(ChannelClosed):
                    await channel.ask(delete, base.Frame)
                channel.close()
        finally:
            await transport.close(2.0)


def _all(options: Options, state: State) -> Iterator[base.Frame]:
    for (group, topic), generations in state.generations.items():
        for generation in generations:
            for shard in range(generation.shards):
                queue = options.queue(group, topic, generation.number, shard)
                yield commands.Queue.Delete(queue=queue)
                yield commands.Exchange.Delete(exchange=queue)
            yield commands.Exchange.Delete(exchange=options.generation(group, topic, generation.number))
    for group in state.groups:
        yield commands.Queue.Delete(queue=options.dead(group))
        yield commands.Exchange.Delete(exchange=options.dead(group))
    for topic in state.topics:
        yield commands.Queue.Delete(queue=options.history_of(topic))
        yield commands.Exchange.Delete(exchange=options.exchange(topic))
    yield commands.Exchange.Delete(exchange=f"{options.prefix}eventkeel.hash")
    yield commands.Queue.Delete(queue=options.registry)
