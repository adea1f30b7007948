"""Streams are read where a copy of them is: a node of a cluster without one refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pamqp import commands

from eventkeel.errors import BrokerUnavailable
from eventkeel.transports.rabbitmq.connection import Channel, ChannelClosed, Line

STARTING = 20.0
"""Seconds that a node may need for its streams after it has let us in."""
_PAUSE = 0.2


def no_copy_here(reason: ChannelClosed) -> bool:
    """The stream has no copy on the node that we are connected to, or none that runs yet."""
    return reason.code == 406 and "replica on the local node" in str(reason)


async def consume(
    line: Line, stream: str, offset: int | str, prefetch: int, prepare: Callable[[Channel], None]
) -> Channel:
    """A channel that consumes a stream from ``offset`` on, at whichever host of the URL has a copy; ``prepare`` sets
    its callbacks. Raises BrokerUnavailable."""
    until = asyncio.get_running_loop().time() + STARTING
    while True:
        connection = await line.get()
        channel = await connection.channel()
        prepare(channel)
        try:
            await channel.ask(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
            wanted = commands.Basic.Consume(queue=stream, arguments={"x-stream-offset": offset})
            await channel.ask(wanted, commands.Basic.ConsumeOk)
            return channel
        except ChannelClosed as closed:
            if not no_copy_here(closed) or asyncio.get_running_loop().time() > until:
                raise BrokerUnavailable(f"broker {connection.name}, {stream}: {closed}") from closed
            await connection.end(f"{stream} is not to be read at this node: {closed}")
            await asyncio.sleep(_PAUSE)
        except BaseException:
            channel.close()
            raise
