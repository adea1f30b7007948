"""What the engine reports. Observers cost nothing when off: the engine holds a list and skips an empty one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, Protocol

from eventkeel.message import Delivery, Slice

Ending = Literal["applied", "duplicate", "parked", "dead", "conflict", "ignored"]


class Observer(Protocol):
    """Every method is called on the event loop, after the fact, and must not raise or wait."""

    def received(self, delivery: Delivery) -> None:
        """A delivery came in; ``id`` and ``type`` are filled where they could be read."""
        ...

    def done(self, delivery: Delivery, ending: Ending, seconds: float, error: str = "") -> None:
        """Its outcome is durable; ``seconds`` since it was received; ``consumer`` and ``attempt`` are filled."""
        ...

    def failed(self, delivery: Delivery, error: BaseException, again_in: float) -> None:
        """A handler failed while running alone; it is tried again in ``again_in`` seconds."""
        ...

    def fenced(self, slice: Slice) -> None:
        """A unit was rolled back because another process owns the slice now, or a waiting key of it."""
        ...

    def owned(self, slice: Slice, epoch: int, suspect: bool) -> None: ...

    def released(self, slice: Slice) -> None: ...

    def relayed(self, count: int, seconds: float) -> None: ...

    def trouble(self, where: str, error: BaseException) -> None:
        """A background loop failed and goes on after a pause."""
        ...


class Shielded:
    """An observer whose failures are its own: told once for each method, they change nothing of what it looks at."""

    def __init__(self, observer: Observer) -> None:
        shield = self._shield
        self.received, self.done, self.failed = (
            shield(observer.received),
            shield(observer.done),
            shield(observer.failed),
        )
        self.fenced, self.owned, self.released = (
            shield(observer.fenced),
            shield(observer.owned),
            shield(observer.released),
        )
        self.relayed, self.trouble = shield(observer.relayed), shield(observer.trouble)

    def _shield(self, method: Callable[..., None]) -> Callable[..., None]:
        told = False

        def call(*what: Any) -> None:
            nonlocal told
            try:
                method(*what)
            except Exception:
                if not told:
                    told = True
                    _log.exception("%s failed; what it should have seen goes on without it", _name(method))

        return call


_log = logging.getLogger("eventkeel.observer")


def _name(method: Callable[..., None]) -> str:
    return getattr(method, "__qualname__", repr(method))
