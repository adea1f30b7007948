"""Streams that end when the page does: a browser that listens must not hold it up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def until(over: asyncio.Event, stream: AsyncGenerator[T]) -> AsyncIterator[T]:
    """What comes from ``stream``, to its end or until ``over`` is set; the stream is closed then."""
    ending = asyncio.ensure_future(over.wait())
    coming: asyncio.Future[T] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(stream))
            await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            yield coming.result()
    except StopAsyncIteration:
        return
    finally:
        ending.cancel()
        if coming is not None and coming.cancel():
            with contextlib.suppress(asyncio.CancelledError):
                await coming
        await stream.aclose()
