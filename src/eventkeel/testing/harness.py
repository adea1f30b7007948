"""``harness(service)``: the real engine on the real SQLite broker and store, with time that tests own.

    async with harness(payments) as app:
        await app.publish(OrderCreated(order_id="1", user_id="u", amount=Decimal("9.99")))
        await app.until_quiet()
        assert await app.rows("select amount from payments") == [(Decimal("9.99"),)]

Nothing is faked but the clock: backoffs pass at once, in order, without waiting for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from eventkeel import codec
from eventkeel.app import Runtime, open_transport
from eventkeel.config import Config
from eventkeel.engine import faults
from eventkeel.event import spec_of
from eventkeel.message import Delivery, Headers, Outgoing, Slice
from eventkeel.ports.observer import Observer
from eventkeel.ports.store import Row
from eventkeel.ports.transport import Sent, Span, TopicWant, Topology, Transport
from eventkeel.service import Service

PATIENCE = 30.0
"""Real seconds after which ``until_quiet`` gives up and says what is still moving."""


ELSEWHERE: dict[str, str] = {}
"""Options of every harness of this process, to run tests on real servers: ``{"store": "postgresql://…?schema={place}"}``.
``{place}``, here and in the URLs of a harness's own options, stands for a name that belongs to the harness's folder:
the same folder means the same place."""

PLACES: set[str] = set()
"""The places that were used: whoever said ``{place}`` tidies up."""


class VirtualClock:
    """Wall time that tests move; short sleeps pass at once."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    async def sleep(self, seconds: float) -> None:
        self._ahead += seconds
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._ahead += max(0.0, seconds)


class Crash(BaseException):
    """What a named fault point raises in ``every_crash_point``: the process would be gone here."""


class Harness:
    """A service under test. Made by ``harness``."""

    def __init__(self, service: Service, folder: Path, options: dict[str, Any], observers: Sequence[Observer]) -> None:
        self.service, self.folder, self.clock = service, folder, VirtualClock()
        self.options, self._observers = options, observers
        """Settings by name, read at each start."""
        self._broker: Transport | None = None
        self._ends: dict[Slice, int] = {}
        """Where the topics ended when ``moving`` asked."""
        self.runtime = self._make()

    def _make(self) -> Runtime:
        place = "h_" + hashlib.blake2b(str(self.folder).encode(), digest_size=6).hexdigest()
        options = {"data": str(self.folder), **ELSEWHERE, **self.options}
        for name in ("broker", "store"):
            if "{place}" in str(options.get(name)):
                PLACES.add(place)
                options[name] = str(options[name]).replace("{place}", place)
        config = Config.load(options, environ={}, file=None)
        dice = random.Random(7).random
        return Runtime(self.service, config, clock=self.clock, dice=dice, observers=self._observers)

    async def start(self) -> None:
        await self.runtime.start()
        self._broker = open_transport(self.runtime.config.broker_url, self.clock)
        await self._broker.open()

    async def another(self) -> Runtime:
        """One more process of the service in the same place, running. The test stops it."""
        runtime = self._make()
        await runtime.start()
        return runtime

    async def stop(self) -> None:
        """Drain and close."""
        await self.runtime.stop()
        await self._close_broker()

    async def _close_broker(self) -> None:
        if self._broker is not None:
            await self._broker.close(1.0)
            self._broker = None

    async def crash(self) -> None:
        """What SIGKILL leaves: nothing is finished, nothing is said goodbye to."""
        await self.runtime.abandon()
        await self._close_broker()

    async def restart(self) -> None:
        """Run again on the same files, after the leases of the dead have run out."""
        self.clock.advance(self.runtime.config.lease + 1)
        await self.start_again()

    async def start_again(self) -> None:
        """Run again in the same place, after ``stop``: as a new process does after a deploy."""
        self.runtime = self._make()
        await self.start()

    # -- messages ------------------------------------------------------------------------------

    @property
    def broker(self) -> Transport:
        assert self._broker is not None
        return self._broker

    async def publish(self, *events: object) -> list[UUID]:
        """Put events on the broker as another service would have published them."""
        records = [
            codec.encode(
                event,
                new_id=self.runtime.context.new_id,
                source="/test",
                now=self.clock.now(),
                correlation=None,
                causation=None,
            )
            for event in events
        ]
        await self.send(*(Outgoing(r.topic, r.key, Headers.from_packed(r.headers), r.body) for r in records))
        return [UUID(bytes=record.event_id) for record in records]

    async def send(self, *messages: Outgoing) -> None:
        """Put raw messages on the broker, whatever they are, in this order."""
        wants = tuple(TopicWant(topic, self.runtime.config.partitions) for topic in {m.topic for m in messages})
        await self.broker.topology(Topology(topics=wants), apply=True)
        for outcome in await self.broker.publish(messages, 10.0):
            assert isinstance(outcome, Sent), outcome

    async def raw(
        self, topic: str, key: str | bytes | None, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """A foreign message: bytes under a key."""
        pairs = tuple((name, value.encode()) for name, value in (headers or {}).items())
        wire = key.encode() if isinstance(key, str) else key
        await self.send(Outgoing(topic, wire, Headers(pairs), body))

    async def redeliver(self, topic: str, times: int = 1) -> None:
        """Everything on ``topic`` once more, as a relay that died before it had its confirmation would."""
        again = [Outgoing(d.topic, d.key, d.headers, d.body or b"") for d in await self.messages(topic)]
        for _ in range(times):
            await self.send(*again)

    async def messages(self, topic: str) -> list[Delivery]:
        """Everything on ``topic``, by partition and position."""
        found: list[Delivery] = []
        async for page in self.broker.read(topic, Span()):
            found += page
        return sorted(found, key=lambda delivery: (delivery.slice, delivery.position))

    async def published(self, kind: type) -> list[Any]:
        """Events of this type that reached the broker, decoded, by partition and position."""
        spec = spec_of(kind)
        decoded = [codec.decode(delivery) for delivery in await self.messages(spec.topic)]
        return [each.event for each in decoded if each.type == spec.type]

    # -- state ---------------------------------------------------------------------------------

    async def rows(self, sql: str, params: Any = ()) -> list[Row]:
        """Rows of the service's own database, values by the table of types."""
        async with self.service.transaction() as tx:
            return await tx.fetch_all(sql, params)

    async def until(self, condition: Callable[[], Awaitable[bool] | bool], patience: float = PATIENCE) -> None:
        """Wait (real time) for a condition."""
        deadline = time.monotonic() + patience
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience:g} s: {await self.moving()}")
            await asyncio.sleep(0.002)

    async def advance(self, seconds: float) -> None:
        """Let what is under way end, then let ``seconds`` pass, then ``until_quiet``: backoffs run out, and events that
        were published for later are sent. Time that a test does not let pass does not pass for them."""
        await self.until_quiet(retries=False)
        self.clock.advance(seconds)
        self._wake()
        await self.until_quiet()

    async def moving(self) -> str:
        """What is not quiet, for people; empty: nothing."""
        runtime = self.runtime
        if runtime.failure is not None and runtime.failure.done():
            runtime.failure.result()
        if not all(lane.idle for lane in runtime.lanes):
            return "a lane is busy"
        if runtime.due is not None:
            if runtime.due.running:
                return "a due delivery runs"
            timer = await runtime.store.next_timer()
            if timer is not None and timer <= self.clock.now():
                return "an event that was published for later is due"
        if await runtime.store.unsent(range(runtime.store.caps.relay_shards), 1):
            return "the outbox has unsent events"
        if runtime.ownership is not None and runtime.context.routes.consumers:
            shares = runtime.ownership.shares
            # Where messages are settled one by one, only who holds them can count them.
            each = runtime.transport.caps.settle == "each"
            for lag in await (runtime.transport if each else self.broker).lag(self.service.group):
                share = shares.get(lag.slice) if not each else None
                at = (share.watermark.base if share is not None else lag.settled) or 0
                if at < lag.end:
                    return f"{lag.slice} is at {at} of {lag.end}"
        return ""

    async def until_quiet(self, *, retries: bool = True) -> None:
        """Until every event on the broker has reached its outcome. With ``retries``, backoffs pass
        (virtual time) until nothing is due any more; without, what waits for its backoff stays.
        What is published for later waits for ``advance``."""
        while True:
            await self.until(self._quiet)
            due = await self.runtime.store.next_due(self.clock.now())
            if not retries or due is None:
                return
            self.clock.advance(due - self.clock.now() + 0.001)
            self._wake()
            await asyncio.sleep(0.001)

    def _wake(self) -> None:
        """Time has passed."""
        for part in (self.runtime.ownership, self.runtime.due):
            if part is not None:
                part.wake()

    async def _quiet(self) -> bool:
        """Nothing moves, and nothing came meanwhile: to ask a broker takes time, in which a message can be handled and
        leave something in the outbox that was found empty before."""
        if await self.moving():
            return False
        before = self._ends
        return not await self.moving() and self._ends == before


@asynccontextmanager
async def harness(
    service: Service, *, folder: Path | None = None, observers: Sequence[Observer] = (), **options: Any
) -> AsyncIterator[Harness]:
    """Run ``service`` in a temporary folder (or ``folder``, which stays). ``options``: by the names
    of the configuration reference, such as ``batch_size=1``."""
    made = folder or Path(tempfile.mkdtemp(prefix="eventkeel-"))
    app = Harness(service, made, options, observers)
    try:
        await app.start()
        yield app
    finally:
        await app.stop()
        if folder is None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _hooked(hook: faults.Hook) -> Iterator[None]:
    before = faults.install(hook)
    try:
        yield
    finally:
        faults.install(before)


Scenario = Callable[[Harness], Awaitable[Any]]


def every_crash_point(service: Service, **options: Any) -> Callable[[Scenario], Callable[[], Awaitable[None]]]:
    """Run a scenario once undisturbed, then once for each fault point that it passes: there the
    process dies (the first time it gets there), starts again on the same files, the scenario is
    run to its quiet end, and must return the same.

    The scenario publishes first and asks afterwards; it is called again after the crash, so what
    it publishes has to have an ``identity`` (or the same ids), as a client that retries would.
    """

    def decorate(scenario: Scenario) -> Callable[[], Awaitable[None]]:
        @functools.wraps(scenario)
        async def run() -> None:
            seen: list[str] = []
            async with harness(service, **options) as app:
                with _hooked(seen.append):
                    expected = await scenario(app)
            names = list(dict.fromkeys(seen))
            assert names, "the scenario passes no fault point: nothing was proved"
            for name in names:
                result = await _with_crash(service, scenario, name, options)
                assert result == expected, f"after a crash at {name}: {result!r} instead of {expected!r}"

        run.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
        return run

    return decorate


async def _with_crash(service: Service, scenario: Scenario, name: str, options: dict[str, Any]) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="eventkeel-"))
    died = asyncio.Event()

    def hook(point: str) -> None:
        if died.is_set():
            raise Crash(point)  # a dead process does nothing more, in any of its tasks
        if point == name:
            died.set()
            raise Crash(point)

    try:
        app = Harness(service, folder, options, ())
        with _hooked(hook):
            try:
                await app.start()
            except Crash:
                pass
            else:
                running = asyncio.ensure_future(_swallow(scenario(app)))
                waiting = asyncio.ensure_future(died.wait())
                await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if not died.is_set():
                    await _let_turn(app, died)
                waiting.cancel()
                running.cancel()
                await asyncio.gather(running, waiting, return_exceptions=True)
            await app.crash()
            assert died.is_set(), f"the fault point {name} was not reached again: nothing was proved"
        await app.restart()
        try:
            return await scenario(app)
        finally:
            await app.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _let_turn(app: Harness, died: asyncio.Event) -> None:
    """Some points are passed by the clock: what the scenario was too quick for comes a little later."""
    for _ in range(100):
        app.clock.advance(app.runtime.config.lease / 2)
        for part in (app.runtime.ownership, app.runtime.due, app.runtime.relay):
            if part is not None:
                part.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await died.wait()
        if died.is_set():
            return


async def _swallow(running: Awaitable[Any]) -> None:
    try:
        await running
    except (Crash, Exception):
        return


__all__ = ["ELSEWHERE", "PLACES", "Crash", "Harness", "VirtualClock", "every_crash_point", "harness"]
