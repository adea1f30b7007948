"""The start/stop contract that every long-running part obeys.

``start`` begins, ``stop`` drains and returns when it is over; both may be called twice. A loop that
fails reports its trouble and goes on after a pause: a background part never dies silently.
"""

from __future__ import annotations

import asyncio
import contextlib

from eventkeel.engine.context import Context
from eventkeel.errors import ConfigurationError

TELL_EVERY = 10.0
"""Seconds between two words about the same trouble."""


class Part:
    """A background loop: subclasses write ``run_once`` and call ``wake`` when there is something to do."""

    name = "part"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.failure: asyncio.Future[None] | None = None
        """Where a fatal error is reported; set by the runtime."""
        self.longest_wait = 5.0
        """Seconds between two turns of which the first one failed, at most; half as long again by chance."""
        self._task: asyncio.Task[None] | None = None
        self._silent_until, self._told = float("-inf"), ""
        self._woken = asyncio.Event()
        self._stopping = False

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"eventkeel {self.context.service} {self.name}")

    async def stop(self) -> None:
        """Finish what runs, then end."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def kill(self) -> None:
        """End at once, finishing nothing: what a crash would do."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Returns when the loop is over, however it ended."""
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.exception()  # seen; who killed it knows why

    def wake(self) -> None:
        self._woken.set()

    async def pause(self, seconds: float) -> None:
        """Until woken, at most ``seconds`` of real time."""
        if not self._woken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
        self._woken.clear()

    async def run_once(self) -> None:
        """One turn: do what there is, then ``pause``. Cancelled only by ``kill``."""
        raise NotImplementedError

    async def _run(self) -> None:
        troubles = 0
        while not self._stopping:
            try:
                await self.run_once()
                troubles = 0
            except ConfigurationError as error:
                self.fail(error)
                return
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and self._to_end():
                    raise
                troubles += 1
                self.tell(error)
                wait = min(self.longest_wait, 0.05 * 2 ** min(troubles, 10)) * (0.5 + self.context.dice())
                await self.pause(wait)

    def tell(self, error: BaseException) -> None:
        """Report trouble; the same again only after ``TELL_EVERY`` seconds."""
        now, text = self.context.clock.monotonic(), repr(error)
        if now < self._silent_until and text == self._told:
            return
        self._silent_until, self._told = now + TELL_EVERY, text
        for observer in self.context.observers:
            observer.trouble(f"{self.context.service} {self.name}", error)

    def _to_end(self) -> bool:
        """Somebody cancelled this loop. A cancellation that came out of what it awaited is trouble like any other."""
        task = asyncio.current_task()
        return self._stopping or (task is not None and task.cancelling() > 0)

    def fail(self, error: BaseException) -> None:
        """Nothing but an operator can help: stop the service with this error."""
        if self.failure is not None and not self.failure.done():
            self.failure.set_exception(error)
