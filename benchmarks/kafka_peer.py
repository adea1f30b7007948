"""The peer on Kafka: FastStream's confluent broker, the offset committed after each message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from faststream import AckPolicy
from faststream.confluent import KafkaBroker

from benchmarks.peer import Kind, Peer


class KafkaPeer(Peer):
    def broker(self) -> KafkaBroker:
        return KafkaBroker(self._here.servers.bootstrap, logger=None)

    def subscriber(self, kind: Kind) -> Callable[[Callable[..., Awaitable[None]]], object]:
        options: dict[str, Any] = {"batch": True, "max_records": 500} if kind == "bulk" else {}
        made: Callable[[Callable[..., Awaitable[None]]], object] = self._broker.subscriber(
            self._here.topic_in,
            group_id=self._here.group,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            **options,
        )
        return made

    async def send(self, body: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> None:
        text = {name: value.decode() for name, value in headers}
        await self._broker.publish(body, topic=self._here.topic_out, key=key, headers=text)
