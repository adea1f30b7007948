"""Protobuf through the whole engine: foreign bodies are handled once, wrong ones are dead letters with their reason."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from eventkeel import Event, Service, Transaction
from eventkeel.event import event
from eventkeel.testing.harness import Harness, harness
from tests.codec.protos import shop_pb2 as pb
from tests.codec.test_protobuf import PROTOBUF, foreign

SCHEMA = "create table if not exists payments (order_id text primary key, amount numeric not null)"
HELD = "select reason, state from eventkeel_held order by number"


class Ordered(
    Event,
    topic="pbs.orders",
    key="order_id",
    identity="order_id",
    accept="plain",
    protobuf=pb.OrderCreated,
    content="json",
):
    order_id: str
    user_id: str
    amount: Decimal


class Paid(Event, topic="pbs.payments", key="order_id", protobuf=pb.PaymentSucceeded):
    order_id: str
    amount: Decimal


event(topic="pbs.later", key="order_id", identity="order_id", accept="plain", required=["amount"])(pb.OrderCreatedLater)


def paying() -> Service:
    service = Service("paying", schema=SCHEMA)

    @service.on(Ordered)
    async def pay(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into payments values (:order_id, :amount)", order)
        tx.publish(Paid(order_id=order.order_id, amount=order.amount))

    return service


async def payments(app: Harness) -> list[Any]:
    return await app.rows("select order_id, amount from payments order by order_id")


async def test_one_handler_takes_json_and_protobuf_and_each_order_once() -> None:
    async with harness(paying()) as app:
        await app.raw("pbs.orders", "O1", foreign(12.5), PROTOBUF)
        await app.raw("pbs.orders", "O2", b'{"order_id":"O2","user_id":"U1","amount":12.50}')
        await app.redeliver("pbs.orders", times=3)
        await app.raw("pbs.orders", "O1", b'{"order_id":"O1","user_id":"U1","amount":12.50}')
        await app.until_quiet()
        assert await payments(app) == [("O1", Decimal("12.5")), ("O2", Decimal("12.5"))]
        bodies = [pb.PaymentSucceeded.FromString(each.body or b"") for each in await app.messages("pbs.payments")]
        assert sorted(each.order_id for each in bodies) == ["O1", "O2"]
        assert {Decimal(each.amount) for each in bodies} == {Decimal("12.5")}
        assert await app.published(Paid) == [Paid(order_id=each.order_id, amount=Decimal("12.5")) for each in bodies]
        assert await app.rows(HELD) == []


async def test_a_wrong_schema_is_a_dead_letter_with_its_reason_and_the_key_goes_on() -> None:
    async with harness(paying()) as app:
        text = pb.OrderCreatedInText(order_id="O1", user_id="U1", amount="12.50").SerializeToString()
        for body in (text, foreign(0), foreign()[:-1], pb.Unrelated(remark="?").SerializeToString(), foreign(7)):
            await app.raw("pbs.orders", "O1", body, PROTOBUF)
        await app.until_quiet()
        assert await payments(app) == [("O1", Decimal(7))]
        assert [reason for reason, _ in await app.rows(HELD)] == [
            "wrong-schema",
            "wrong-fields",
            "not-protobuf",
            "wrong-schema",
        ]


async def test_the_same_order_with_another_amount_is_an_identity_conflict() -> None:
    async with harness(paying()) as app:
        await app.raw("pbs.orders", "O1", foreign(1), PROTOBUF)
        await app.raw("pbs.orders", "O1", foreign(2), PROTOBUF)
        await app.until_quiet()
        assert await payments(app) == [("O1", Decimal(1))]
        assert [reason for reason, _ in await app.rows(HELD)] == ["identity-conflict"]


async def test_a_generated_class_is_handled_and_published_as_it_is() -> None:
    service = Service("generated", schema=SCHEMA)

    @service.on(Ordered)
    async def forward(order: Ordered, tx: Transaction) -> None:
        tx.publish(pb.OrderCreatedLater(order_id=order.order_id, amount=float(order.amount), coupon="C"))

    @service.on(pb.OrderCreatedLater)
    async def keep(order: pb.OrderCreatedLater, tx: Transaction) -> None:
        tx.write("insert into payments values (:order_id, :amount)", order)

    @service.on(pb.OrderCreatedLater)
    async def count(orders: list[pb.OrderCreatedLater], tx: Transaction) -> None:
        assert all(order.coupon for order in orders)

    async with harness(service) as app:
        await app.publish(Ordered(order_id="O1", user_id="U1", amount=Decimal("0.5")))
        await app.raw("pbs.later", "O2", pb.OrderCreatedLater(order_id="O2", amount=2, coupon="D").SerializeToString())
        await app.until_quiet()
        assert await payments(app) == [("O1", Decimal("0.5")), ("O2", Decimal(2))]
        assert await app.rows(HELD) == []
