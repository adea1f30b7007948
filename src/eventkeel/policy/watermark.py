"""How far a slice is finished, when its deliveries finish out of order. Pure.

Only the contiguous prefix may be settled: committing the highest finished position loses what is
still running below it (the rule of Confluent's parallel consumer: "offsets for commit").
"""

from __future__ import annotations

from collections import deque


class Watermark:
    """Positions as they were handed over, and which of them are finished.

    Positions need not be consecutive: what the broker never delivered (holes of transactions or of
    compaction) counts as finished.
    """

    __slots__ = ("_finished", "_open", "base")

    def __init__(self, base: int | None) -> None:
        self.base = base
        """Next position wanted: everything before it is finished. None: nothing came yet."""
        self._open: deque[int] = deque()
        self._finished: set[int] = set()

    def take(self, position: int) -> None:
        """A delivery was handed over; positions come in rising order."""
        if self.base is None:
            self.base = position
        self._open.append(position)

    def finish(self, position: int) -> None:
        """Its outcome is durable."""
        self._finished.add(position)
        while self._open and self._open[0] in self._finished:
            first = self._open.popleft()
            self._finished.discard(first)
            self.base = first + 1

    @property
    def running(self) -> int:
        return len(self._open)
