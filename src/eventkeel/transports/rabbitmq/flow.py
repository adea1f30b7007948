"""One slice that was begun: its channel, what waits to be handed over, and what is out."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from pamqp import commands

from eventkeel.message import Delivery, Slice
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import Channel, ChannelClosed, Connection
from eventkeel.transports.rabbitmq.registry import Generation

TAG = "eventkeel"
"""Of the one consumer on each channel."""
SOON, LATE = 0.05, 1.0
"""Seconds that an acknowledgement waits for more of them, and that one waits where an earlier delivery is still out."""


class Flow:
    """Of a shard queue: each delivery is settled by itself. ``position`` is the delivery tag less one."""

    each = True

    def __init__(self, slice: Slice, queue: str, arrived: Callable[[Flow, int], None]) -> None:
        self.slice, self.queue = slice, queue
        self.incarnation = f"{queue}#{os.urandom(5).hex()}"
        self.ready: deque[tuple[Delivery, int]] = deque()
        """What came and was not handed over yet, with its size."""
        self.ready_bytes = 0
        self.out: dict[int, tuple[int, float]] = {}
        """Position -> size and time of what was handed over and is not settled, in rising order."""
        self.out_bytes = 0
        self._unsaid: dict[int, float] = {}
        """Position -> moment of what is settled and not acknowledged yet."""
        self._prefetch = 0
        self._timer: asyncio.TimerHandle | None = None
        self.paused = False
        self.settled = 0
        self.idle_since = 0.0
        self.proof = ""
        """A marker of ours that was put behind everything else, where nothing more is published into the queue."""
        self.last = False
        """It has come: so has all that lay before it, and what another consumer had to give back."""
        self.proved: Callable[[], None] = lambda: None
        """Called then."""
        self._arrived = arrived
        self._channel: Channel | None = None

    # -- life

    def open(self, connection: Connection, prefetch: int, lost: Callable[[Flow, ChannelClosed], None]) -> None:
        """Consume, without waiting: what the broker refuses comes as ``lost``."""
        channel = self._channel = connection.open_channel()
        channel.on_content = self._content
        channel.on_closed = lambda reason: lost(self, reason)
        channel.on_cancel = lambda: lost(self, ChannelClosed(404, f"the broker ended the consumer of {self.queue!r}"))
        channel.expect()
        self._prefetch = prefetch
        channel.tell(commands.Basic.Qos(prefetch_count=prefetch))
        channel.expect()
        channel.tell(self._consume())

    def _consume(self) -> commands.Basic.Consume:
        return commands.Basic.Consume(queue=self.queue, consumer_tag=TAG)

    def close(self) -> None:
        """Close the channel: what is not acknowledged goes back, in its order. Cancelling alone would let the next
        consumer pass what is still out."""
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._say_prefix(self._channel)
            self._say(-math.inf, self._channel)
            self._channel.on_closed = lambda reason: None
            self._channel.close()
            self._channel = None
        self.ready.clear()
        self.ready_bytes = 0

    # -- deliveries

    def _content(self, method: bytes, header: bytes, body: bytes) -> None:
        got = wire.delivered(method, header)
        if got.marker and not body:
            if got.marker == self.proof and self._channel is not None:
                self._channel.connection.write(wire.ack(self._channel.number, got.tag, False))
                self.last = True
                self.proved()
            return  # another one's goes back with this channel, to whoever waits for it
        delivery = Delivery(self.slice, got.tag - 1, got.key, got.headers, body, got.time)
        self._keep(delivery, len(body) + len(header))

    def _keep(self, delivery: Delivery, size: int) -> None:
        self.ready.append((delivery, size))
        self.ready_bytes += size
        self._arrived(self, size)

    def hand_over(self, count: int, size: int, *, whole: bool) -> list[Delivery]:
        """As many as fit; ``whole``: at least one, however large."""
        items: list[Delivery] = []
        ready, out = self.ready, self.out
        while ready and len(items) < count:
            delivery, cost = ready[0]
            if cost > size and not (whole and not items):
                break
            ready.popleft()
            size -= cost
            self.ready_bytes -= cost
            self.out_bytes += cost
            out[delivery.position] = cost, delivery.time
            items.append(delivery)
        return items

    def settle(self, positions: Sequence[int]) -> tuple[int, int]:
        """Acknowledge these; the count and the bytes that are not out any more.

        Where all before a message are finished, one frame says so for all of them: it means the same, and costs the
        broker one step instead of many. Lanes finish the messages of one queue in turns, and a broker that is told of
        few gives few, which are finished at once: so it is told of a quarter of what it may give, or after a moment
        (``SOON``); what is ahead of something that is still out waits for longer (``LATE``, or until most of what the
        broker may give is used up).
        """
        out, now = self.out, time.monotonic()
        count = size = 0
        for position in positions:
            found = out.pop(position, None)
            if found is not None:
                size += found[0]
                count += 1
                self._unsaid[position] = now
        if not count or self._channel is None:
            return count, size
        self.out_bytes -= size
        self.settled += count
        if len(self._unsaid) * 4 >= self._prefetch:
            self._say_prefix(self._channel)
        if len(self._unsaid) * 4 > self._prefetch * 3:
            self._say(-math.inf, self._channel)
        if self._unsaid and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON, self._later)
        return count, size

    def _later(self) -> None:
        self._timer = None
        if self._channel is None:
            return
        self._say_prefix(self._channel)
        self._say(LATE, self._channel)
        if self._unsaid:
            self._timer = asyncio.get_running_loop().call_later(SOON, self._later)

    def _say_prefix(self, channel: Channel) -> None:
        """Acknowledge what has nothing before it that is still out."""
        first_out = next(iter(self.out), math.inf)
        prefix = [each for each in self._unsaid if each < first_out]
        for each in prefix:
            del self._unsaid[each]
        if prefix and channel.closed is None:
            channel.connection.write(wire.ack(channel.number, max(prefix) + 1, True))

    def _say(self, age: float, channel: Channel) -> None:
        """Acknowledge what has waited for ``age`` seconds, each by itself."""
        until = time.monotonic() - age
        late = [each for each, moment in self._unsaid.items() if moment <= until]
        for each in late:
            del self._unsaid[each]
        if late and channel.closed is None:
            channel.connection.write(wire.joined([wire.ack(channel.number, each + 1, False) for each in late]))

    @property
    def held(self) -> int:
        """Messages that the broker has given to us and that are not settled."""
        return len(self.ready) + len(self.out)

    @property
    def oldest(self) -> float | None:
        times: Iterable[float] = (moment for _, moment in self.out.values())
        first = next((moment for moment in times if moment), None)
        if first is None and self.ready:
            return self.ready[0][0].time or None
        return first

    @property
    def idle(self) -> bool:
        return not self.ready and not self.out


class HistoryFlow(Flow):
    """Of a topic's history: in order, settled by its prefix, up to a marker of our own. ``position`` is the offset."""

    each = False

    def __init__(
        self,
        slice: Slice,
        stream: str,
        first: int | None,
        since: float,
        arrived: Callable[[Flow, int], None],
        ended: Callable[[], None],
    ) -> None:
        """``since``: Unix seconds. A stream forgets by whole segments, so that a quiet one keeps what is older than its
        age; but the inbox does not, and would take it for new."""
        super().__init__(slice, stream, arrived)
        self.incarnation = stream
        self.marker = os.urandom(8).hex()
        self.end: int | None = None
        """Where our marker lies: nothing behind it is wanted."""
        self.fills: list[Generation] = []
        """The generations that begin with it."""
        self._first, self._since, self._tags = first, since, dict[int, int]()
        self._ended = ended

    def _consume(self) -> commands.Basic.Consume:
        offset = datetime.fromtimestamp(self._since, UTC)
        return commands.Basic.Consume(queue=self.queue, consumer_tag=TAG, arguments={"x-stream-offset": offset})

    def _content(self, method: bytes, header: bytes, body: bytes) -> None:
        got = wire.delivered(method, header)
        assert self._channel is not None
        if got.marker == self.marker:
            self.end = got.offset
            self._ended()
        passed = self._first is not None and got.offset < self._first
        if got.marker or passed or self.end is not None:
            self._channel.connection.write(wire.ack(self._channel.number, got.tag, False))
            return
        self._tags[got.offset] = got.tag
        delivery = Delivery(self.slice, got.offset, got.key, got.headers, body, got.time)
        self._keep(delivery, len(body) + len(header))

    def settle(self, positions: Sequence[int]) -> tuple[int, int]:
        """``positions``: next ones wanted, all before them are finished."""
        at = max(positions)
        done = [position for position in self.out if position < at]
        size = tag = 0
        for position in done:
            size += self.out.pop(position)[0]
            tag = self._tags.pop(position)
        if done and self._channel is not None:
            self.settled = done[-1] + 1
            self.out_bytes -= size
            self._channel.connection.write(wire.ack(self._channel.number, tag, True))
        if done:
            self._ended()
        return len(done), size

    @property
    def finished(self) -> bool:
        """All up to the marker is settled."""
        return self.end is not None and self.idle
