"""Payments: takes the money for every order, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shop.payments.handlers import service as service


def __getattr__(name: str) -> object:
    """``shop.payments:service``, made when it is asked for: other services import only our events."""
    if name == "service":
        from shop.payments.handlers import service

        return service
    raise AttributeError(name)
