"""The payment provider, as its HTTP API has it. A call that gets no answer raises, and is to be made again with the
same key: for one key, the provider does a thing once and gives the same answer again."""

from __future__ import annotations

import http.client
from decimal import Decimal
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from shop import settings

PATIENCE = 3.0
"""Seconds within which the provider has to answer."""


class NoAnswer(Exception):
    """The provider cannot be reached, or did not answer in time: nobody knows whether it has done what was asked."""


class Answer(msgspec.Struct, frozen=True):
    """``pending``: it will tell by its webhook."""

    status: Literal["succeeded", "declined", "pending"]
    reason: str = ""


def charge(order_id: str, amount: Decimal, key: str) -> Answer:
    """Take money for an order. Raises NoAnswer."""
    return _post("/charges", order_id, amount, key)


def refund(order_id: str, amount: Decimal, key: str) -> Answer:
    """Give it back. Raises NoAnswer."""
    return _post("/refunds", order_id, amount, key)


def _post(path: str, order_id: str, amount: Decimal, key: str) -> Answer:
    where = urlsplit(settings.PROVIDER)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE)
    body = msgspec.json.encode({"reference": order_id, "amount": str(amount), "webhook": settings.WEBHOOK})
    try:
        connection.request("POST", path, body, {"content-type": "application/json", "idempotency-key": key})
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"POST {settings.PROVIDER}{path} for order {order_id}: {error!r}") from error
    finally:
        connection.close()
    if response.status not in (200, 201, 202, 402):
        raise NoAnswer(f"POST {settings.PROVIDER}{path} for order {order_id}: {response.status} {text[:200]!r}")
    return msgspec.json.decode(text, type=Answer)
