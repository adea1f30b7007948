"""Shipping: books a parcel, or refuses to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shop.parts import on_demand

if TYPE_CHECKING:
    from shop.shipping.handlers import service as service


def __getattr__(name: str) -> object:
    return on_demand(__name__, name)
