"""An order's life, told as it happens: server-sent events from its history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from eventkeel import Service
from shop.orders.events import ENDS

LOOK = 0.2
"""Seconds between two looks at the history, while somebody listens."""
SIGN_OF_LIFE = 15.0
"""Seconds of silence after which a comment is sent, so that nobody in between gives the connection up."""

HISTORY = """
    select sequence, status, reason from order_history
    where order_id = :order_id and sequence > :after order by sequence"""


async def life(order_id: str, after: int, service: Service) -> AsyncIterator[bytes]:
    """Ends when the order has reached one of its ends."""
    spoken = time.monotonic()
    while True:
        async with service.transaction() as tx:
            rows = await tx.fetch_all(HISTORY, {"order_id": order_id, "after": after})
        for after, status, reason in rows:
            told = msgspec.json.encode({"order_id": order_id, "sequence": after, "status": status, "reason": reason})
            yield b"id: %d\nevent: status\ndata: %s\n\n" % (after, told)
        if rows and rows[-1][1] in ENDS:
            return
        now = time.monotonic()
        if rows or now - spoken > SIGN_OF_LIFE:
            spoken = now
            if not rows:
                yield b": still there\n\n"
        await asyncio.sleep(LOOK)
