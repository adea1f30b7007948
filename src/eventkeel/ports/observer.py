"""What the engine reports. Observers cost nothing when off: the engine holds a list and skips an empty one."""

from __future__ import annotations

from typing import Literal, Protocol

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
