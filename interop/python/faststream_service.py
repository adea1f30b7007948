"""A FastStream service beside the shop, as its documentation has it: pydantic models on Kafka, nothing of Eventkeel.

    python faststream_service.py --broker HOST:PORT [--prefix PREFIX] [--group GROUP] [--orders N] [--twice]

Prints a line of JSON for every order and every payment that it hears of. At its start it places N orders, with
--twice each of them two times.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from decimal import Decimal
from typing import Annotated

from faststream import FastStream
from faststream.confluent import KafkaBroker
from pydantic import BaseModel, PlainSerializer

log = logging.getLogger("faststream_service")


class OrderCreated(BaseModel):
    order_id: str
    user_id: str
    # pydantic writes a Decimal as text; on this topic an amount is a number
    amount: Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]


class PaymentSucceeded(BaseModel):
    order_id: str
    amount: Decimal


def say(what: BaseModel) -> None:
    print(f'{{"{type(what).__name__}": {what.model_dump_json()}}}', flush=True)


def service(arguments: argparse.Namespace) -> FastStream:
    broker = KafkaBroker(arguments.broker, allow_auto_create_topics=False, logger=log)
    app = FastStream(broker, logger=log)
    orders, payments = f"{arguments.prefix}order_events", f"{arguments.prefix}payment_events"

    @broker.subscriber(orders, group_id=arguments.group, auto_offset_reset="earliest")
    async def hear_of_order(order: OrderCreated) -> None:
        say(order)

    @broker.subscriber(payments, group_id=arguments.group, auto_offset_reset="earliest")
    async def hear_of_payment(payment: PaymentSucceeded) -> None:
        say(payment)

    @app.after_startup
    async def place_orders() -> None:
        for _ in range(2 if arguments.twice else 1):
            for number in range(1, arguments.orders + 1):
                order = OrderCreated(
                    order_id=f"FS{number}", user_id=f"USR{number}", amount=Decimal(number) + Decimal("0.5")
                )
                await broker.publish(order, orders, key=order.order_id.encode())

    return app


def main() -> None:
    logging.basicConfig(level=logging.INFO)  # to standard error; what it hears goes to standard output
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", default="localhost:9092")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--group", default="faststream-group")
    parser.add_argument("--orders", type=int, default=0)
    parser.add_argument("--twice", action="store_true")
    asyncio.run(service(parser.parse_args()).run())


if __name__ == "__main__":
    main()
