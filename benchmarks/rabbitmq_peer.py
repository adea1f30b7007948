"""The peer on RabbitMQ: FastStream on aio-pika, one quorum queue on a topic exchange, each message acknowledged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from faststream import AckPolicy
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.peer import Kind, Peer

PREFETCH = 100
"""More did not make it faster."""


class RabbitPeer(Peer):
    id_header = "ce-id"

    def broker(self) -> RabbitBroker:
        self._out = RabbitExchange(self._here.topic_out, type=ExchangeType.TOPIC, durable=True)
        return RabbitBroker(self._here.servers.broker, logger=None)

    def subscriber(self, kind: Kind) -> Callable[[Callable[..., Awaitable[None]]], object]:
        queue = RabbitQueue(self._here.topic_in, durable=True, queue_type=QueueType.QUORUM, routing_key="#")
        exchange = RabbitExchange(self._here.topic_in, type=ExchangeType.TOPIC, durable=True)
        made: Callable[[Callable[..., Awaitable[None]]], object] = self._broker.subscriber(
            queue, exchange, channel=Channel(prefetch_count=PREFETCH), ack_policy=AckPolicy.NACK_ON_ERROR
        )
        return made

    async def send(self, body: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> None:
        text = {name.replace("ce_", "ce-"): value.decode() for name, value in headers}
        await self._broker.publish(
            body,
            exchange=self._out,
            routing_key=key.decode(),
            headers=text,
            persist=True,
            content_type="application/json",
        )
