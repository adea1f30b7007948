"""A program beside the services that speaks Protobuf: confluent-kafka and generated classes, nothing of Eventkeel.

    python -m interop.python.protobuf_program --broker HOST:PORT --group GROUP --orders-topic TOPIC
        --payments-topic TOPIC [--orders N]

Writes N orders to the one topic, each of them twice and under another name of Protobuf's content type, then one whose
amount is text. Prints a line of JSON for every message of the other topic, until it is ended.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, Message, Producer

from interop.python.protos.payments_pb2 import OrderCreated, PaymentSucceeded

CONTENT_TYPES = (
    "application/protobuf",
    "application/x-protobuf",
    "application/vnd.google.protobuf; proto=OrderCreated",
)


def place_orders(producer: Producer, topic: str, count: int) -> None:
    for number in range(1, count + 1):
        order = OrderCreated(order_id=f"PB{number}", user_id="ä", amount=number + 0.1)
        for copy in range(2):
            content_type = CONTENT_TYPES[(number + copy) % len(CONTENT_TYPES)]
            produce(producer, topic, order.order_id, order.SerializeToString(), content_type)
    # A message of another schema: to a parser its amount is an unknown field, and OrderCreated.amount is 0.
    other = PaymentSucceeded(order_id="PB-text", amount="99.99").SerializeToString()
    produce(producer, topic, "PB-text", other.replace(b"\x12", b"\x1a"), CONTENT_TYPES[0])
    producer.flush()


def produce(producer: Producer, topic: str, key: str, body: bytes, content_type: str) -> None:
    producer.produce(topic, body, key, headers=[("Content-Type", content_type)])


def say(message: Message) -> None:
    headers: Any = dict(message.headers() or ())
    payment = PaymentSucceeded.FromString(message.value() or b"")
    line = {"order_id": payment.order_id, "amount": payment.amount, "type": headers["ce_type"].decode()}
    print(json.dumps({**line, "content_type": headers["content-type"].decode()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--broker", "--orders-topic", "--payments-topic", "--group"):
        parser.add_argument(name, required=True)
    parser.add_argument("--orders", type=int, default=0)
    said = parser.parse_args()
    place_orders(Producer({"bootstrap.servers": said.broker}), said.orders_topic, said.orders)
    settings = {"bootstrap.servers": said.broker, "group.id": said.group, "auto.offset.reset": "earliest"}
    with closing(Consumer(settings)) as consumer:
        consumer.subscribe([said.payments_topic])
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                say(message)


if __name__ == "__main__":
    main()
