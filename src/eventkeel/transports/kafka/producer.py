"""Sending: waves are handed to the library in order and pipelined; one wake-up of the event loop for each wave.

A producer that cannot be trusted any more (a gap, a fatal error, a deadline that passed with messages
in flight) is purged and made anew. What its requests still bring to the broker afterwards are repeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Outgoing
from eventkeel.ports.transport import Outcome, Refused, Sent, Unknown
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.admin import Admin
from eventkeel.transports.kafka.settings import LARGEST_BATCH, MAX_KEY, SPARE, Options, client_log, log

_POLL = 0.1
_LAST_WORDS = 2.0
"""Seconds in which a purged producer's reports come in."""
_FULL_PAUSE = 0.003
_BREATH = 500
"""Messages handed over in one turn of the event loop, which others wait for."""
_SENT = Sent()
_unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode
"""As the library wants them; the outbox has them packed."""


class _Goal(NamedTuple):
    """Where the messages of a topic go."""

    name: str
    largest: int
    """Bytes of one batch."""


class _Wave:
    """The delivery reports of one wave, counted where they come in: on the producer's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.answered: asyncio.Future[None] = loop.create_future()
        self.expected = -1
        self.count = 0
        self.failures: dict[int, KafkaError] = {}

    def delivered(self, index: int, error: KafkaError | None, message: Message) -> None:
        """``index`` says which one: the message itself comes back without its headers."""
        if error is not None:
            self.failures[index] = error
        self.count += 1
        if self.count == self.expected:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self.check)

    def check(self) -> None:
        """On the event loop: all reports are there."""
        if self.count == self.expected and not self.answered.done():
            self.answered.set_result(None)


class _Line:
    """One producer and the thread that serves it."""

    def __init__(self, options: Options, largest_batch: int) -> None:
        self.largest_batch = largest_batch
        self.broken = ""
        self._ending = threading.Event()
        self._flush = 0.0
        self.producer = Producer(options.for_producer(largest_batch), logger=client_log())
        self.produce = self.producer.produce
        self._thread = threading.Thread(target=self._serve, name="eventkeel-kafka-producer", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending.is_set():
            self._listen(lambda: self.producer.poll(_POLL))
        if self._flush > 0:
            self._listen(lambda: self.producer.flush(self._flush))
        until = time.monotonic() + _LAST_WORDS
        if len(self.producer):
            self.producer.purge(blocking=False)
            while len(self.producer) and time.monotonic() < until:
                self._listen(lambda: self.producer.poll(_POLL))

    def _listen(self, serve: Callable[[], int]) -> None:
        """Let reports come in. A fatal error is raised in the midst of them, once; they go on coming afterwards."""
        try:
            serve()
        except (KafkaException, SystemError) as error:  # SystemError: it was raised while another one was
            self.broken = self.broken or errors.text(error)

    def end(self, flush: float = 0.0) -> None:
        """Let it go. What is not confirmed after ``flush`` seconds is purged and reported so."""
        self._flush = flush
        self._ending.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)


class Publisher:
    """Sends waves. On one event loop."""

    def __init__(self, options: Options, admin: Admin, max_body: int) -> None:
        self._options, self._admin, self._max_body = options, admin, max_body
        self._loop = asyncio.get_running_loop()
        self._goals: dict[str, _Goal] = {}
        self._order = asyncio.Lock()
        self._closed = False
        self._line = self._make(LARGEST_BATCH - SPARE)

    def _make(self, largest_batch: int) -> _Line:
        try:
            return _Line(self._options, largest_batch)
        except (KafkaException, TypeError, ValueError) as error:
            said = self._options.masked(errors.text(error))
            raise ConfigurationError(f"the options of broker {self._options.name} are not valid: {said}") from error

    async def close(self, deadline: float) -> None:
        self._closed = True
        self._line.end(flush=deadline)
        await self._loop.run_in_executor(None, self._line.join, deadline + 0.3)

    def forget(self, topic: str) -> None:
        """Ask the broker again what the topic is."""
        self._goals.pop(topic, None)

    # -- waves

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> list[Outcome]:
        """See the port."""
        until = self._loop.time() + deadline
        reports = _Wave(self._loop)
        outcomes: list[Outcome | None] = [None] * len(wave)
        try:
            async with asyncio.timeout(deadline):
                async with self._order:  # whatever waits for room keeps its place
                    line = await self._ready(wave)
                    await self._hand_over(line, wave, reports, outcomes)
                await asyncio.shield(reports.answered)  # or the deadline would cancel it, and nobody could wait again
        except TimeoutError:
            reason = f"broker {self._options.name} has not confirmed it within {deadline:g} s"
            log.warning("%s; the producer is made anew, and what was not confirmed is sent again", reason)
            await self._give_up(wave, reports, outcomes)
            return self._judge(wave, outcomes, reports, reason)
        except BrokerUnavailable as error:
            return [each or Unknown(str(error)) for each in outcomes]
        return self._judge(wave, outcomes, reports, "" if self._loop.time() <= until else "too late")

    async def _ready(self, wave: Sequence[Outgoing]) -> _Line:
        """A producer to be trusted, and all that has to be known about the wave's topics."""
        if self._closed:
            raise BrokerUnavailable(f"broker {self._options.name} is not open")
        unknown = {message.topic for message in wave} - self._goals.keys()
        if unknown:
            await self._learn(unknown)
        if self._line.broken:
            log.warning(
                "broker %s: the producer is made anew, and what was not confirmed is sent again: %s",
                self._options.name,
                self._line.broken,
            )
            self._renew(self._line.largest_batch)
        return self._line

    def _renew(self, largest_batch: int) -> None:
        self._line.end()
        self._line = self._make(largest_batch)

    async def _learn(self, topics: Iterable[str]) -> None:
        """Which topics there are, and how large their batches may be."""
        names = {topic: self._options.on_broker(topic) for topic in topics if _is_name(topic)}
        found = await self._admin.topics(names.values())
        there = {topic: name for topic, name in names.items() if name in found}
        limits = await self._admin.limits(sorted(there.values()))
        for topic, name in there.items():
            self._goals[topic] = _Goal(name, limits[name] - SPARE)
        smallest = min((goal.largest for goal in self._goals.values()), default=LARGEST_BATCH)
        if smallest < self._line.largest_batch:  # or the library would fill batches that the broker refuses
            await self._drained()
            self._renew(smallest)

    async def _drained(self) -> None:
        while len(self._line.producer):
            await asyncio.sleep(_FULL_PAUSE)

    async def _hand_over(
        self, line: _Line, wave: Sequence[Outgoing], reports: _Wave, outcomes: list[Outcome | None]
    ) -> None:
        produce, delivered, goals = line.produce, reports.delivered, self._goals
        held: set[tuple[str, bytes]] = set()
        expected = 0
        for index, message in enumerate(wave):
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            goal = goals.get(message.topic)
            refused: Refused | Unknown | None = self._refusal(goal, message)
            if refused is None and held and message.key is not None and (message.topic, message.key) in held:
                refused = Refused("an earlier message of its key in this wave was refused", final=False)
            if refused is None and goal is not None:
                while True:
                    try:
                        produce(
                            goal.name,
                            message.body,
                            message.key,
                            headers=_unpack(message.headers.packed),
                            on_delivery=partial(delivered, index),
                        )
                        expected += 1
                        break
                    except BufferError:
                        await asyncio.sleep(_FULL_PAUSE)
                    except KafkaException as error:
                        found = errors.inner(error)
                        assert found is not None
                        refused = errors.outcome(found, message.topic)
                        if isinstance(refused, Unknown):  # the producer itself takes nothing any more
                            line.broken = line.broken or errors.text(error)
                        break
                    except (TypeError, ValueError) as error:
                        refused = Refused(f"it cannot be written: {error}")
                        break
            if refused is not None:
                outcomes[index] = refused
                if message.key is not None:
                    held.add((message.topic, message.key))
        reports.expected = expected
        reports.check()

    def _refusal(self, goal: _Goal | None, message: Outgoing) -> Refused | None:
        """What can be known without the broker is refused before anything of its key is sent."""
        if goal is None:
            return errors.missing(message.topic)
        try:
            packed = message.headers.packed
        except (TypeError, ValueError, OverflowError) as error:
            return Refused(f"its headers cannot be written: {error}")
        if b"\0" in packed and any("\0" in name for name, _ in message.headers):
            return Refused("its headers cannot be written: a name has a NUL character")
        size, key = len(message.body), message.key
        if size > self._max_body:
            return Refused(f"its body has {size:,} bytes; this broker takes {self._max_body:,}")
        if key is not None:
            if len(key) > MAX_KEY:
                return Refused(f"its key has {len(key):,} bytes; this broker takes {MAX_KEY:,}")
            size += len(key)
        if size + len(packed) > goal.largest:
            return Refused(
                f"its body, key and headers have {size + len(packed):,} bytes; topic {message.topic!r} takes "
                f"{goal.largest:,} (max.message.bytes)"
            )
        return None

    # -- outcomes

    async def _give_up(self, wave: Sequence[Outgoing], reports: _Wave, outcomes: list[Outcome | None]) -> None:
        """The deadline has passed: purge, make the producer anew, and hear what it can say of this wave."""
        self._renew(self._line.largest_batch)
        for message in wave:
            self.forget(message.topic)
        if reports.expected < 0:  # not all of it was handed over
            reports.expected = -2
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await reports.answered

    def _judge(
        self, wave: Sequence[Outgoing], outcomes: list[Outcome | None], reports: _Wave, late: str
    ) -> list[Outcome]:
        if reports.count != reports.expected:
            return [each or Unknown(late) for each in outcomes]
        if not reports.failures:
            return [each or _SENT for each in outcomes]
        failed = self._failures(wave, reports.failures)
        held: set[tuple[str, bytes]] = set()
        judged: list[Outcome] = []
        for index, (message, refused) in enumerate(zip(wave, outcomes, strict=True)):
            outcome: Outcome = refused or failed.get(index) or _SENT
            if isinstance(outcome, Sent) and message.key is not None and (message.topic, message.key) in held:
                outcome = Unknown("an earlier message of its key was not sent")
            if not isinstance(outcome, Sent) and message.key is not None:
                held.add((message.topic, message.key))
            judged.append(outcome)
        return judged

    def _failures(self, wave: Sequence[Outgoing], reports: dict[int, KafkaError]) -> dict[int, Refused | Unknown]:
        """What became of each message that failed."""
        too_large = Counter(wave[index].topic for index, error in reports.items() if error.code() in errors.TOO_LARGE)
        failed: dict[int, Refused | Unknown] = {}
        for index, error in reports.items():
            topic = wave[index].topic
            failed[index] = errors.outcome(error, topic)
            if error.code() in errors.TOO_LARGE and too_large[topic] > 1:
                # A batch was refused as a whole: whose fault it was is known when the topic's limit is.
                failed[index] = Unknown(f"topic {topic!r}: {errors.text(error)}")
            if error.code() in errors.MISSING or error.code() in errors.TOO_LARGE:
                self.forget(topic)
            if error.fatal() or error.code() in (KafkaError._GAPLESS_GUARANTEE, KafkaError._FATAL):
                self._line.broken = self._line.broken or errors.text(error)
        return failed


def _is_name(topic: str) -> bool:
    """A name that can be asked for: a lone surrogate or a NUL cannot be written at all."""
    return bool(topic) and "\0" not in topic and topic.encode("utf-8", "ignore").decode() == topic
