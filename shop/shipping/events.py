"""What `shipping` says to the world."""

from __future__ import annotations

from eventkeel import Event


class ShipmentBooked(Event, topic="shipping_events", key="order_id"):
    """A parcel is on its way."""

    order_id: str
    tracking: str


class ShipmentRefused(Event, topic="shipping_events", key="order_id"):
    """There will be no parcel."""

    order_id: str
    reason: str


class ShipmentRecalled(Event, topic="shipping_events", key="order_id"):
    """The parcel, if there was one, comes back."""

    order_id: str
