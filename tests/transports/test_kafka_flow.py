"""The Kafka transport's inner parts, without a broker: budgets, the polling thread, headers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from eventkeel.message import Delivery, Headers, Slice
from eventkeel.transports.kafka import polling
from eventkeel.transports.kafka.admin import Place
from eventkeel.transports.kafka.flow import PER_MESSAGE, Chunk, Flow
from eventkeel.transports.kafka.polling import Poller

SLICE, PLACE = Slice("orders", 0), ("orders", 0)


def delivery(position: int, size: int = 10) -> Delivery:
    return Delivery(SLICE, position, None, Headers(), b"x" * size, 1.0)


def flow_of(*chunks: list[Delivery]) -> Flow:
    flow = Flow(SLICE, PLACE, "id", 0)
    for items in chunks:
        flow.ready.append(Chunk(items, sum(PER_MESSAGE + len(each.body or b"") for each in items)))
    return flow


def test_what_is_handed_over_and_settled_adds_up_at_every_step() -> None:
    flow = flow_of([delivery(n) for n in range(7)], [delivery(n) for n in range(7, 12)])
    got: list[int] = []
    for count in (3, 1, 10, 2, 10):
        if flow.ready:
            got += [each.position for each in flow.hand_over(count, 10_000, whole=False)]
    assert got == list(range(12))
    assert (flow.count, flow.size) == (12, 12 * (PER_MESSAGE + 10))
    for at in (1, 2, 5, 6, 11, 12):
        flow.settle(at)
        assert (flow.count, flow.size) == (12 - at, (12 - at) * (PER_MESSAGE + 10))
    assert not flow.out
    assert flow.waiting() == (0, 0)


def test_bytes_bound_what_is_handed_over_and_the_first_may_be_larger() -> None:
    flow = flow_of([delivery(0, 5_000), delivery(1), delivery(2)])
    assert not flow.hand_over(10, 1_000, whole=False)
    assert [each.position for each in flow.hand_over(10, 1_000, whole=True)] == [0]
    assert flow.size == PER_MESSAGE + 5_000
    assert [each.position for each in flow.hand_over(10, PER_MESSAGE + 10, whole=False)] == [1]


# -- the polling thread


class FakeMessage:
    def __init__(self, offset: int, error: KafkaError | None = None, headers: Any = None) -> None:
        self._offset, self._error, self._headers = offset, error, headers

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return PLACE[0]

    def partition(self) -> int:
        return PLACE[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes:
        return b"x" * 10

    def headers(self) -> Any:
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, 1000

    def __len__(self) -> int:
        return 10


class FakeConsumer:
    """What the thread calls, written down; it gives what the test puts into ``arriving``."""

    def __init__(self) -> None:
        self.arriving: deque[FakeMessage | Exception] = deque()
        self.calls: list[tuple[str, Any]] = []
        self.polls = 0
        self.paused = True
        self.seek_fails = 0

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke = on_assign, on_revoke

    def poll(self, timeout: float) -> FakeMessage | None:
        self.polls += 1
        if not self.arriving or self.paused:
            time.sleep(0.001)
            return None
        first = self.arriving.popleft()
        if isinstance(first, Exception):
            raise first
        return first

    def consume(self, count: int, timeout: float) -> list[FakeMessage]:
        got: list[FakeMessage] = []
        while self.arriving and len(got) < count and isinstance(self.arriving[0], FakeMessage):
            got.append(self.arriving.popleft())  # type: ignore[arg-type]
        return got

    def seek(self, part: Any) -> None:
        if self.seek_fails:
            self.seek_fails -= 1
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.calls.append(("seek", part.offset))

    def pause(self, parts: Any) -> None:
        self.paused = True
        self.calls.append(("pause", len(parts)))

    def resume(self, parts: Any) -> None:
        self.paused = False
        self.calls.append(("resume", len(parts)))

    def commit(self, *, offsets: Any, asynchronous: bool) -> None:
        assert asynchronous
        self.calls.append(("commit", [(each.offset, each.metadata) for each in offsets]))

    def incremental_assign(self, parts: Any) -> None: ...
    def incremental_unassign(self, parts: Any) -> None: ...

    def close(self) -> None:
        self.calls.append(("close", None))


class Heard:
    def __init__(self) -> None:
        self.items: list[Delivery] = []
        self.failures: list[tuple[KafkaError, Place | None]] = []
        self.over = False

    def arrived(self, chunks: list[tuple[Flow, Chunk]]) -> None:
        for _, chunk in chunks:
            self.items += chunk.items

    def assigned(self, places: list[Place]) -> None: ...
    def revoking(self, places: list[Place], deadline: float) -> None: ...
    def lost(self, places: list[Place]) -> None: ...

    def failed(self, error: KafkaError, place: Place | None) -> None:
        self.failures.append((error, place))

    def ended(self) -> None:
        self.over = True


class Bench:
    def __init__(self) -> None:
        self.consumer, self.heard = FakeConsumer(), Heard()
        fake: Any = self.consumer
        self.poller = Poller(fake, ["orders"], self.heard, lambda: "words")
        self.answers: list[tuple[KafkaError | None, bool]] = []
        self.flow = flow_of()

    def begin(self, at: int = 0) -> None:
        parts: Any = [type("Part", (), {"topic": PLACE[0], "partition": PLACE[1]})]
        consumer: Any = self.consumer
        self.poller._on_assign(consumer, parts)
        self.poller.begin(self.flow, at, lambda error, assigned: self.answers.append((error, assigned)))
        self.poller.start()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.fixture
def bench() -> Any:
    made = Bench()
    yield made
    made.poller.close()


async def test_a_seek_that_comes_too_early_is_tried_again(bench: Bench) -> None:
    bench.consumer.seek_fails = 3
    bench.begin(7)
    await bench.until(lambda: bench.answers == [(None, True)])
    assert ("seek", 7) in bench.consumer.calls


async def test_without_room_nothing_is_taken_and_the_polling_goes_on(bench: Bench) -> None:
    bench.begin()
    bench.consumer.arriving.extend(FakeMessage(n) for n in range(10_000))
    await bench.until(lambda: len(bench.heard.items) >= polling.AHEAD_COUNT)
    await bench.until(lambda: bench.consumer.calls[-1] == ("pause", 1))
    taken, polls = len(bench.heard.items), bench.consumer.polls
    assert taken < polling.AHEAD_COUNT + polling.LIST
    await bench.until(lambda: bench.consumer.polls > polls + 20)
    assert len(bench.heard.items) == taken
    while len(bench.heard.items) < 10_000:
        bench.poller.taken = len(bench.heard.items)
        bench.poller.taken_bytes = bench.poller._given_bytes
        bench.poller.took()
        have = len(bench.heard.items)
        await bench.until(lambda have=have: len(bench.heard.items) > have)  # type: ignore[misc]
    assert [each.position for each in bench.heard.items] == list(range(10_000))


async def test_what_comes_again_is_handed_over_once(bench: Bench) -> None:
    bench.begin()
    bench.consumer.arriving.extend(FakeMessage(n) for n in (0, 1, 2, 1, 2, 3))
    await bench.until(lambda: len(bench.heard.items) == 4)
    assert [each.position for each in bench.heard.items] == [0, 1, 2, 3]


async def test_behind_a_message_that_cannot_be_read_nothing_is_handed_over(bench: Bench) -> None:
    bench.begin()
    bench.consumer.arriving += [FakeMessage(0), FakeMessage(1, KafkaError(KafkaError._BAD_MSG)), FakeMessage(2)]
    await bench.until(lambda: bench.heard.failures)
    await bench.until(lambda: not bench.consumer.arriving)
    await asyncio.sleep(0.05)
    assert [each.position for each in bench.heard.items] == [0]
    ((error, place),) = bench.heard.failures
    assert (error.code(), place) == (KafkaError._BAD_MSG, PLACE)


async def test_headers_that_no_client_can_read_do_not_stop_the_partition(bench: Bench) -> None:
    bench.begin()
    unreadable = SystemError("returned a result with an exception set")
    bench.consumer.arriving += [FakeMessage(0, headers=unreadable), FakeMessage(1, headers=[("a", None)])]
    await bench.until(lambda: len(bench.heard.items) == 2)
    first, second = (each.headers for each in bench.heard.items)
    assert [name for name, _ in first] == ["eventkeel-unreadable-headers"]
    assert second == Headers([("a", b"")])


async def test_settled_positions_are_committed_with_the_stores_words(bench: Bench) -> None:
    bench.begin()
    await bench.until(lambda: bench.answers)
    bench.flow.settled = 5
    await bench.until(lambda: ("commit", [(5, "words")]) in bench.consumer.calls)
    bench.flow.settled = 9
    bench.poller.close()
    await bench.until(lambda: bench.heard.over)
    assert bench.consumer.calls[-2:] == [("commit", [(9, "words")]), ("close", None)]


async def test_a_thread_that_fails_says_so_and_closes_its_consumer(bench: Bench) -> None:
    bench.begin()
    await bench.until(lambda: bench.answers)
    bench.consumer.arriving.append(RuntimeError("whatever"))
    await bench.until(lambda: bench.heard.over)
    assert bench.heard.failures
    assert bench.consumer.calls[-1] == ("close", None)
