"""An observer for tests: remembers what the engine reported."""

from __future__ import annotations

from eventkeel.message import Delivery, Slice
from eventkeel.ports.observer import Ending


class Recorder:
    def __init__(self) -> None:
        self.endings: list[tuple[str, Ending]] = []
        self.failures: list[BaseException] = []
        self.fences: list[Slice] = []
        self.troubles: list[tuple[str, BaseException]] = []
        self.suspects: list[Slice] = []

    def received(self, delivery: Delivery) -> None: ...

    def done(self, delivery: Delivery, ending: Ending, seconds: float, error: str = "") -> None:
        self.endings.append((delivery.consumer, ending))

    def failed(self, delivery: Delivery, error: BaseException, again_in: float) -> None:
        self.failures.append(error)

    def fenced(self, slice: Slice) -> None:
        self.fences.append(slice)

    def owned(self, slice: Slice, epoch: int, suspect: bool) -> None:
        if suspect:
            self.suspects.append(slice)

    def released(self, slice: Slice) -> None: ...

    def relayed(self, count: int, seconds: float) -> None: ...

    def trouble(self, where: str, error: BaseException) -> None:
        self.troubles.append((where, error))
