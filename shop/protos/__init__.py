"""Events as Protobuf (shop.proto; ``scripts/protos`` makes the classes), for topics that ``SHOP_PROTOBUF`` names."""

from __future__ import annotations

import importlib
from typing import Any

from shop import settings


def protobuf(topic: str, message: str) -> type[Any] | None:
    """The generated class of an event; None: its topic has JSON bodies, and nothing is loaded."""
    if topic not in settings.PROTOBUF:
        return None
    found: type[Any] = getattr(importlib.import_module("shop.protos.shop_pb2"), message)
    return found
