"""The service `loyalty`: points for every confirmed order, taken back when it is refunded; and some for a welcome."""

from __future__ import annotations

from eventkeel import Service, Transaction
from shop.orders.events import OrderStatusChanged
from shop.parts import schema_of
from shop.users.events import UserRegistered

WELCOME = 100

service = Service("loyalty", schema=schema_of("shop.loyalty"))


@service.on(UserRegistered)
async def welcome(user: UserRegistered, tx: Transaction) -> None:
    give(user.user_id, "", WELCOME, tx)


@service.on(OrderStatusChanged)
async def follow_order(order: OrderStatusChanged, tx: Transaction) -> None:
    """A point for every whole unit of money. Only what was earned can be taken back, and it comes in order."""
    match order.status:
        case "confirmed":
            give(order.user_id, order.order_id, int(order.amount), tx)
        case "cancelled":
            earned = await tx.fetch_value("select sum(points) from entries where order_id = :order_id", order)
            if earned:
                give(order.user_id, order.order_id, -int(earned), tx)


def give(user_id: str, order_id: str, points: int, tx: Transaction) -> None:
    """Whoever has no account yet gets one: a customer's order may be here before the customer."""
    row = {"user_id": user_id, "order_id": order_id, "points": points}
    tx.write(
        "insert into accounts as a (user_id, points) values (:user_id, :points) "
        "on conflict (user_id) do update set points = a.points + excluded.points",
        row,
    )
    tx.write("insert into entries (user_id, order_id, points) values (:user_id, :order_id, :points)", row)
