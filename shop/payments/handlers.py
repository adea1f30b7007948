"""The service `payment-service`. Two kinds of handler: those that decide, in the database; and those that then talk to
the provider, with no transaction open, each call journalled."""

from __future__ import annotations

from decimal import Decimal

from eventkeel import Retry, Service, Steps, Transaction
from shop.orders.events import OrderCreated, OrderStatusChanged
from shop.parts import schema_of
from shop.payments import provider
from shop.payments.api import app
from shop.payments.events import ChargeDue, PaymentRefunded, PaymentVoided, RefundDue
from shop.payments.settling import settle

service = Service(
    "payment-service",
    group="payment-service-group",
    schema=schema_of("shop.payments"),
    http=app,
    # The provider may be down for as long as it likes: we ask again every few seconds, and never give up.
    retry=Retry(attempts=0, first=0.5, cap=5.0),
)


@service.on(OrderCreated)
async def hear_of_order(order: OrderCreated, tx: Transaction) -> None:
    """An order without items waits for nobody's stock: it is paid at once."""
    if not order.items:
        await ask_for_money(order, tx)


@service.on(OrderStatusChanged)
async def follow_order(order: OrderStatusChanged, tx: Transaction) -> None:
    """One with items is paid when they are reserved for it; and any is refunded when it goes back."""
    match order.status:
        case "reserved" if order.items:
            await ask_for_money(order, tx)
        case "refunding":
            await give_back(order, tx)


async def ask_for_money(order: OrderCreated | OrderStatusChanged, tx: Transaction) -> None:
    """Unless it was called off before it came here."""
    new = await tx.execute(
        "insert into charges (order_id, user_id, amount, state) values (:order_id, :user_id, :amount, 'asked') "
        "on conflict (order_id) do nothing",
        order,
    )
    if new:
        tx.publish(ChargeDue(order_id=order.order_id, amount=order.amount))


async def give_back(order: OrderStatusChanged, tx: Transaction) -> None:
    """What was taken; or remember that it is wanted back as soon as it is; or see to it that it never is."""
    called_off = await tx.execute(
        "insert into charges (order_id, state) values (:order_id, 'void') on conflict (order_id) do nothing", order
    )
    if called_off:
        tx.publish(PaymentVoided(order_id=order.order_id))
        return
    state, amount = await _wanted_back(order, tx)
    if state == "paid":
        tx.publish(RefundDue(order_id=order.order_id, amount=amount))


async def _wanted_back(order: OrderStatusChanged, tx: Transaction) -> tuple[str, Decimal]:
    row = await tx.fetch_one(
        "update charges set give_back = true where order_id = :order_id returning state, amount", order
    )
    assert row is not None
    return row[0], row[1]


@service.on(ChargeDue)
async def charge(due: ChargeDue, steps: Steps) -> None:
    """However often this runs, and on however many machines: the provider charges once for one key, and what it has
    answered is kept as soon as it is here."""
    answer = await steps.run("charge", provider.charge, due.order_id, due.amount, steps.key("charge"))
    async with steps.transaction() as tx:
        await settle(due.order_id, answer, tx)


@service.on(RefundDue)
async def refund(due: RefundDue, steps: Steps) -> None:
    await steps.run("refund", provider.refund, due.order_id, due.amount, steps.key("refund"))
    async with steps.transaction() as tx:
        user_id = await tx.fetch_value(
            "update charges set state = 'refunded' where order_id = :order_id returning user_id", due
        )
        tx.write(
            "insert into payments (order_id, user_id, amount) values (:order_id, :user_id, :amount)",
            {"order_id": due.order_id, "user_id": user_id, "amount": -due.amount},
        )
        tx.publish(PaymentRefunded(order_id=due.order_id, amount=due.amount))
