"""Event classes and messages that the codec's tests share."""

from __future__ import annotations

from decimal import Decimal

from eventkeel import codec
from eventkeel.codec.identity import uuid7
from eventkeel.event import Event
from eventkeel.message import Delivery, Headers, Slice
from eventkeel.ports.store import Record

NOW = 1_764_000_000.123456
ORDER = b'{"order_id":"ORD12345","user_id":"USR001","amount":99.99}'


class OrderCreated(Event, topic="codec.order_events", key="order_id", identity="order_id", accept="plain"):
    order_id: str
    user_id: str
    amount: Decimal


class OrderPaid(Event, topic="codec.status_events", key="order_id"):
    order_id: str
    amount: Decimal


class OrderShipped(Event, topic="codec.status_events", key="order_id", version=2):
    order_id: str
    parcels: int = 1


class SensorRead(Event, topic="codec.sensor_events", key="sensor", identity="position", accept="plain"):
    sensor: str
    value: float


def new_id() -> bytes:
    return uuid7(NOW, lambda count: b"\x07" * count)


def encode(event: object, *, correlation: str | None = None, causation: str | None = None, now: float = NOW) -> Record:
    return codec.encode(event, new_id=new_id, source="/shop", now=now, correlation=correlation, causation=causation)


def delivered(record: Record, *, position: int = 7) -> Delivery:
    headers = Headers.from_packed(record.headers)
    return Delivery(Slice(record.topic, 3), position, record.key, headers, record.body, NOW)


def message(
    body: bytes | None,
    headers: dict[str, str] | list[tuple[str, bytes]] | None = None,
    *,
    topic: str = "codec.order_events",
    key: bytes | None = b"ORD12345",
    position: int = 7,
    time: float = NOW,
) -> Delivery:
    """What a foreign producer left on a broker."""
    pairs = [(name, value.encode()) for name, value in headers.items()] if isinstance(headers, dict) else headers or []
    return Delivery(Slice(topic, 3), position, key, Headers(pairs), body, time)


def envelope(**changes: str | None) -> dict[str, str]:
    """Headers as an SDK writes them; None leaves one out."""
    headers: dict[str, str | None] = {
        "ce_specversion": "1.0",
        "ce_id": "a-1",
        "ce_source": "/go",
        "ce_type": "OrderPaid",
        "content-type": "application/json",
    }
    headers.update(changes)
    return {name: value for name, value in headers.items() if value is not None}
