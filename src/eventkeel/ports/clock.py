"""Time as a port, so that tests own it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall-clock time in Unix seconds: for due times and leases that other processes read."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: for durations measured inside this process."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real thing."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
