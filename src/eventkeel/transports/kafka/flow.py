"""A partition that was begun: what of it waits, what is out, how far it is settled."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from eventkeel.message import Delivery, Slice
from eventkeel.transports.kafka.admin import Place

PER_MESSAGE = 64
"""Bytes that a message counts beside its body."""
_position = attrgetter("position")


class Chunk:
    """Some deliveries of one partition, in order, with the bytes that they count."""

    __slots__ = ("done", "items", "size")

    def __init__(self, items: list[Delivery], size: int) -> None:
        self.items, self.size = items, size
        self.done = 0
        """How many of them are settled."""

    def split(self, count: int, size: int) -> Chunk | None:
        """Take as many from the front as fit, all or some; None: not even one fits."""
        if len(self.items) <= count and self.size <= size:
            whole = Chunk(self.items, self.size)
            self.items, self.size = [], 0
            return whole
        fit = used = 0
        for item in self.items[:count]:
            used += weight(item)
            if used > size:
                used -= weight(item)
                break
            fit += 1
        return self.take(fit, used) if fit else None

    def take(self, count: int, size: int) -> Chunk:
        front = Chunk(self.items[:count], size)
        self.items, self.size = self.items[count:], self.size - size
        return front


def weight(delivery: Delivery) -> int:
    body = delivery.body
    return PER_MESSAGE if body is None else PER_MESSAGE + len(body)


class Flow:
    """``thread_next`` belongs to the polling thread, ``settled`` is read there; the rest to the event loop."""

    __slots__ = (
        "committed", "count", "dead", "incarnation", "out", "paused", "place", "ready", "settled", "size", "slice",
        "thread_next",
    )  # fmt: skip

    def __init__(self, slice: Slice, place: Place, incarnation: str, at: int | None) -> None:
        self.slice, self.place, self.incarnation = slice, place, incarnation
        self.thread_next = -1 if at is None else at
        """Nothing below it is handed over."""
        self.dead = False
        """It has met an error that would leave a gap: nothing more of it is handed over."""
        self.settled = self.committed = -1
        self.paused = False
        self.ready: deque[Chunk] = deque()
        """Arrived, and not handed over yet."""
        self.out: deque[Chunk] = deque()
        """Handed over, and not settled yet."""
        self.count = self.size = 0
        """Of ``out``."""

    def hand_over(self, count: int, size: int, *, whole: bool) -> Sequence[Delivery]:
        """The next deliveries that fit; ``whole``: the first whatever its size."""
        chunk = self.ready[0]
        front = chunk.split(count, size)
        if front is None:
            if not whole:
                return ()
            front = chunk.take(1, weight(chunk.items[0]))
        if not chunk.items:
            self.ready.popleft()
        self.out.append(front)
        self.count += len(front.items)
        self.size += front.size
        return front.items

    def settle(self, at: int) -> None:
        """Everything below ``at`` is finished."""
        out = self.out
        while out:
            chunk = out[0]
            items = chunk.items
            if items[-1].position < at:
                out.popleft()
                self.count -= len(items) - chunk.done
                self.size -= chunk.size
                continue
            done = bisect_left(items, at, lo=chunk.done, key=_position)
            size = sum(map(weight, items[chunk.done : done]))
            self.count -= done - chunk.done
            self.size -= size
            chunk.size -= size
            chunk.done = done
            break
        self.settled = at

    def waiting(self) -> tuple[int, int]:
        """How many deliveries are ready, and their bytes."""
        return sum(len(chunk.items) for chunk in self.ready), sum(chunk.size for chunk in self.ready)
