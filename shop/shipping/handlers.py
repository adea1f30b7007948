"""The service `shipping`: a parcel for every paid order, unless it is too heavy; called back if the order is."""

from __future__ import annotations

import uuid

from eventkeel import Service, Transaction
from shop.orders.events import OrderStatusChanged
from shop.parts import schema_of
from shop.shipping.events import ShipmentBooked, ShipmentRecalled, ShipmentRefused

TOO_HEAVY = frozenset({"anvil"})
"""We take the money for them, and only then find out that nobody carries them."""

service = Service("shipping", schema=schema_of("shop.shipping"))


@service.on(OrderStatusChanged)
async def follow_order(order: OrderStatusChanged, tx: Transaction) -> None:
    """The changes of one order come in order, so what is recalled was booked, or refused, before."""
    match order.status:
        case "paid":
            book(order, tx)
        case "recalling":
            tx.write("update shipments set state = 'recalled' where order_id = :order_id", order)
            tx.publish(ShipmentRecalled(order_id=order.order_id))


def book(order: OrderStatusChanged, tx: Transaction) -> None:
    heavy = sorted({item.sku for item in order.items} & TOO_HEAVY)
    if heavy:
        tx.publish(ShipmentRefused(order_id=order.order_id, reason=f"nobody carries {heavy[0]!r}"))
        return
    tracking = uuid.uuid5(uuid.NAMESPACE_OID, order.order_id).hex[:12].upper()
    tx.write(
        "insert into shipments (order_id, tracking, state) values (:order_id, :tracking, 'booked')",
        {"order_id": order.order_id, "tracking": tracking},
    )
    tx.publish(ShipmentBooked(order_id=order.order_id, tracking=tracking))
