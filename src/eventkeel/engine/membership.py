"""This process's membership in its group: a subscription that can be left and made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from eventkeel.message import Position, Slice
from eventkeel.ports.transport import Arrival, Subscription

LEAVING = 5.0
"""Seconds that the old subscription gets to leave the group."""


class Membership:
    """A ``Subscription`` in front of the one that lives now."""

    def __init__(self, make: Callable[[], Subscription]) -> None:
        self._make = make
        self.current = make()
        self._renewed = asyncio.Event()
        self._renewed.set()

    async def renew(self) -> None:
        """Leave the group and join it again: what was assigned is assigned anew, by whoever does that."""
        if not self._renewed.is_set():
            return
        self._renewed.clear()
        try:
            await self.current.close(LEAVING)
            self.current = self._make()
        finally:
            self._renewed.set()

    async def next(self) -> Arrival:
        while True:
            now = self.current
            arrival = await now.next()
            if now is self.current and self._renewed.is_set():
                return arrival
            await self._renewed.wait()  # what the old one still said means nothing any more

    async def begin(self, slice: Slice, at: Position | None) -> None:
        await self.current.begin(slice, at)

    async def settle(self, slice: Slice, positions: Sequence[Position]) -> None:
        await self.current.settle(slice, positions)

    async def pause(self, slices: Collection[Slice], on: bool) -> None:
        await self.current.pause(slices, on)

    async def release(self, slices: Collection[Slice]) -> None:
        await self.current.release(slices)

    async def close(self, deadline: float) -> None:
        await self.current.close(deadline)
