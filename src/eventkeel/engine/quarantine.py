"""Only a death while running alone counts: while a suspect delivery runs, nothing else of this process does.

Without it a neighbour that happened to be at work in another lane whenever a poison message killed the
process would be counted with it, and be a dead letter for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Quarantine:
    """Any number of ordinary runs at once, or one suspect. A suspect that waits is let in before new ordinary runs."""

    def __init__(self) -> None:
        self._ordinary = 0
        self._wanted = 0
        """Suspects that run, or wait to."""
        self._alone = False
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def ordinary(self) -> AsyncIterator[None]:
        """Run beside others, but beside no suspect."""
        if self._wanted:
            await self._until(lambda: not self._wanted)
        self._ordinary += 1
        try:
            yield
        finally:
            self._ordinary -= 1
            self._tell()

    @asynccontextmanager
    async def suspect(self) -> AsyncIterator[None]:
        """Run alone in this process."""
        self._wanted += 1
        try:
            await self._until(lambda: not self._ordinary and not self._alone)
            self._alone = True
            try:
                yield
            finally:
                self._alone = False
        finally:
            self._wanted -= 1
            self._tell()

    async def _until(self, free: Callable[[], bool]) -> None:
        while not free():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _tell(self) -> None:
        """No await in here: whoever leaves may have been cancelled."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
