"""What `inventory` says to the world."""

from __future__ import annotations

from eventkeel import Event


class _StockEvent(Event, key="order_id"):
    order_id: str


class StockReserved(_StockEvent, topic="inventory_events"):
    """Everything that the order needs is held for it."""


class StockRefused(_StockEvent, topic="inventory_events"):
    """Nothing is held for the order: something of it is not there."""

    reason: str


class StockSold(_StockEvent, topic="inventory_events"):
    """What was held for the order has left the shelves."""


class StockReleased(_StockEvent, topic="inventory_events"):
    """What was held for the order, or sold to it, is free again."""
