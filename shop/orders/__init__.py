"""Orders: an HTTP API that takes them, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shop.orders.handlers import service as service


def __getattr__(name: str) -> object:
    """``shop.orders:service``, made when it is asked for: other services import only our events."""
    if name == "service":
        from shop.orders.handlers import service

        return service
    raise AttributeError(name)
