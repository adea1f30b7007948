"""Two services under test: `orders` takes orders over HTTP, `payment-service` pays each of them, and `orders` hears of
it. As little as a promise can be broken in, and quick; the whole order system is in `shop/`."""

READS = {
    "payment-service-group": ("order_events",),
    "orders": ("payment_events", "order_status_events"),
}
"""Which group reads which topics."""
