"""What the twins and the peers write by hand: the two events, their JSON, the headers of the answer."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID, uuid4

import msgspec


class OrderCreated(msgspec.Struct, frozen=True):
    order_id: str
    user_id: str
    amount: Decimal


class PaymentSucceeded(msgspec.Struct, frozen=True):
    order_id: str
    amount: Decimal


decode_order = msgspec.json.Decoder(OrderCreated).decode
encode_json = msgspec.json.Encoder(decimal_format="number").encode
pack, unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


def outgoing(event_id: UUID, cause: str, order: OrderCreated, now: str) -> tuple[UUID, bytes, bytes, bytes]:
    """What an outbox row holds: id, key, packed headers, body."""
    id, key = uuid4(), order.order_id.encode()
    headers = [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"PaymentSucceeded"),
        ("ce_source", b"/payment-service"),
        ("ce_id", str(id).encode()),
        ("ce_time", now.encode()),
        ("ce_subject", key),
        ("ce_correlationid", cause.encode()),
        ("ce_causationid", str(event_id).encode()),
    ]
    return id, key, pack(headers), encode_json(PaymentSucceeded(order.order_id, order.amount))
