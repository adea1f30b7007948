"""Orders: takes them over HTTP, and leads each through its life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shop.parts import on_demand

if TYPE_CHECKING:
    from shop.orders.handlers import service as service


def __getattr__(name: str) -> object:
    return on_demand(__name__, name)
