"""The service `inventory`: holds stock for a placed order, sells it when it was shipped, gives it back otherwise."""

from __future__ import annotations

from eventkeel import Service, Transaction
from shop.inventory.events import StockRefused, StockReleased, StockReserved, StockSold
from shop.orders.events import Item, OrderStatusChanged
from shop.parts import schema_of

service = Service("inventory", schema=schema_of("shop.inventory"))


class OutOfStock(Exception):
    """There is not enough of something."""


@service.on(OrderStatusChanged)
async def follow_order(order: OrderStatusChanged, tx: Transaction) -> None:
    """The changes of one order come in order, so what is sold or released was reserved before."""
    match order.status:
        case "placed":
            await reserve(order, tx)
        case "shipped":
            await sell(order, tx)
        case "releasing":
            await release(order, tx)


async def reserve(order: OrderStatusChanged, tx: Transaction) -> None:
    """All of it or nothing: the savepoint takes back what was held before something was missing."""
    try:
        async with tx.savepoint():
            # Always in the order of their names, so that two orders never wait for each other.
            for line, item in enumerate(sorted(order.items)):
                await hold(order.order_id, line, item, tx)
    except OutOfStock as missing:
        tx.publish(StockRefused(order_id=order.order_id, reason=str(missing)))
    else:
        tx.publish(StockReserved(order_id=order.order_id))


async def hold(order_id: str, line: int, item: Item, tx: Transaction) -> None:
    """Only if there is enough: the condition stands in the statement, so nobody can get in between."""
    row = {"order_id": order_id, "line": line, "sku": item.sku, "quantity": item.quantity}
    took = await tx.execute(
        "update stock set free = free - :quantity, held = held + :quantity where sku = :sku and free >= :quantity", row
    )
    if not took:
        raise OutOfStock(f"not enough of {item.sku!r}")
    tx.write(
        "insert into reservations (order_id, line, sku, quantity, state) "
        "values (:order_id, :line, :sku, :quantity, 'held')",
        row,
    )


async def sell(order: OrderStatusChanged, tx: Transaction) -> None:
    for sku, quantity, _ in await _reserved(order, tx):
        tx.write(
            "update stock set held = held - :quantity, sold = sold + :quantity where sku = :sku",
            {"sku": sku, "quantity": quantity},
            rows=1,
        )
    tx.write("update reservations set state = 'sold' where order_id = :order_id and state = 'held'", order)
    tx.publish(StockSold(order_id=order.order_id))


async def release(order: OrderStatusChanged, tx: Transaction) -> None:
    """Also for an order that got nothing: who asks for it hears that nothing is held any more."""
    reserved = await _reserved(order, tx)
    for sku, quantity, state in reserved:
        taken_from = "held" if state == "held" else "sold"
        tx.write(
            f"update stock set free = free + :quantity, {taken_from} = {taken_from} - :quantity where sku = :sku",
            {"sku": sku, "quantity": quantity},
            rows=1,
        )
    tx.write("update reservations set state = 'released' where order_id = :order_id", order)
    tx.publish(StockReleased(order_id=order.order_id))


async def _reserved(order: OrderStatusChanged, tx: Transaction) -> list[tuple[str, int, str]]:
    rows = await tx.fetch_all(
        "select sku, quantity, state from reservations "
        "where order_id = :order_id and state <> 'released' order by line",
        order,
    )
    return [(sku, quantity, state) for sku, quantity, state in rows]
