"""What the page shows, told to every browser that shows it, as server-sent events. While none does, nobody looks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from shop.databases import Unreadable

SLOW = 1.0
"""Seconds between two looks when nothing has moved for a while."""
CALM = 12
"""Looks without a change after which it is calm."""
SIGN_OF_LIFE = 15.0
"""Seconds of silence after which a comment is sent."""

encode = msgspec.json.Encoder(decimal_format="number").encode


class Feed:
    """One looker for all that listen. ``look`` is called in a thread, never twice at once; it may raise Unreadable.
    ``quick``: seconds between two looks while something moves."""

    def __init__(self, look: Callable[[], dict[str, Any]], quick: float = 0.25) -> None:
        self._look, self._quick = look, quick
        self._one_at_a_time = threading.Lock()  # a thread that nobody waits for any more still looks to its end
        self._listeners = 0
        self._looking: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._number = 0
        self._latest = b""
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Something was just done: look now."""
        self._hurry.set()

    async def listen(self) -> AsyncGenerator[bytes]:
        """Every state that differs from the one before; of several in between, the latest. Where there is nothing to
        see, why not."""
        self._listeners += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking())
        seen = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(SIGN_OF_LIFE), self._changed:
                        while self._number == seen:
                            await self._changed.wait()
                    seen = self._number
                    yield self._latest
                except TimeoutError:
                    yield b": still there\n\n"
        finally:
            self._listeners -= 1
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking, self._number, self._latest = None, 0, b""

    async def _keep_looking(self) -> None:
        still = 0
        while True:
            self._hurry.clear()
            if await self._look_once():
                still = 0
            still += 1
            try:
                async with asyncio.timeout(self._quick if still < CALM else SLOW):
                    await self._hurry.wait()
                still = 0
            except TimeoutError:
                continue

    async def _look_once(self) -> bool:
        """True: it looks different from before."""
        try:
            event = b"event: state\ndata: %s\n\n" % encode(await asyncio.to_thread(self._look_alone))
        except Unreadable as error:  # a database that is just being made, or does not answer
            event = b"event: trouble\ndata: %s\n\n" % encode(str(error))
        if event == self._latest:
            return False
        async with self._changed:
            self._latest = event
            self._number += 1
            self._changed.notify_all()
        return True

    def _look_alone(self) -> dict[str, Any]:
        with self._one_at_a_time:
            return self._look()
