"""The composition root: loads transport and store by URL scheme, wires the engine, runs it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from eventkeel import codec
from eventkeel.codec.identity import uuid7
from eventkeel.config import Config, mask
from eventkeel.engine.context import SENDS_ONLY, Context, Numbers
from eventkeel.engine.due import Due
from eventkeel.engine.housekeeping import Housekeeping
from eventkeel.engine.intake import Intake
from eventkeel.engine.lanes import Lane
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.membership import Membership
from eventkeel.engine.outside import OpenDoor
from eventkeel.engine.ownership import Ownership
from eventkeel.engine.relay import Relay
from eventkeel.engine.step_lane import StepLane
from eventkeel.errors import ConfigurationError, GroupTaken, PositionError
from eventkeel.event import POSITION
from eventkeel.event import topics as declared_topics
from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.clock import Clock, SystemClock
from eventkeel.ports.observer import Observer
from eventkeel.ports.store import ConsumerName, Schema, Store
from eventkeel.ports.transport import Budget, GroupWant, TopicWant, Topology, Transport
from eventkeel.service import Service

Mode = Literal["worker", "publisher", "relay"]
"""``worker``: everything. ``publisher``: the store only (a web process beside the workers).
``relay``: store and relay (a command that publishes)."""

_BUILT_IN = {
    "eventkeel.transports": {
        "amqp": "eventkeel.transports.rabbitmq:RabbitTransport",
        "amqps": "eventkeel.transports.rabbitmq:secure",
        "sqlite": "eventkeel.transports.sqlite:SQLiteTransport",
        "kafka": "eventkeel.transports.kafka:KafkaTransport",
    },
    "eventkeel.stores": {
        "sqlite": "eventkeel.stores.sqlite:SQLiteStore",
        "postgresql": "eventkeel.stores.postgres:PostgresStore",
        "postgres": "eventkeel.stores.postgres:PostgresStore",
    },
    "eventkeel.catalogues": {
        "sqlite": "eventkeel.stores.sqlite:SQLiteCatalogue",
        "postgresql": "eventkeel.stores.postgres:PostgresCatalogue",
        "postgres": "eventkeel.stores.postgres:PostgresCatalogue",
    },
}
_FILES = ("sqlite",)
"""Schemes whose URLs are paths."""

REFILLING = 86400.0
"""Seconds that a group may take to read again what its broker keeps; the inbox has to remember for so much longer."""

DRAIN = 20.0
"""Seconds that running deliveries get at shutdown: below the 30 s after which orchestrators kill."""


def load_service(reference: str) -> Service:
    """``module:attribute`` -> Service. Raises ConfigurationError that says what was looked for."""
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"{reference!r} is not MODULE:ATTRIBUTE, such as shop.payments:service")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise ConfigurationError(
                f"there is no module {error.name!r} in {os.getcwd()} or on the Python path (for {reference!r})"
            ) from error
        raise
    service = getattr(loaded, attribute, None)
    if not isinstance(service, Service):
        found = sorted(name for name, value in vars(loaded).items() if isinstance(value, Service))
        hint = f"; it has {', '.join(f'{module}:{name}' for name in found)}" if found else ""
        raise ConfigurationError(f"{module} has no Service called {attribute!r}{hint}")
    return service


def open_transport(url: str, clock: Clock | None = None) -> Transport:
    """The transport for a broker URL, not opened yet."""
    factory, rest = _leaf("eventkeel.transports", url, "broker")
    made: Transport = factory(rest, clock=clock or SystemClock())
    return made


def open_store(url: str, service: str) -> Store:
    """The store for a database URL, not opened yet."""
    factory, rest = _leaf("eventkeel.stores", url, "store")
    made: Store = factory(rest, service)
    return made


def store_of(service: Service, config: Config) -> Store:
    """The store that the service was given, or the one at the URL in force; not opened yet."""
    if service.store is not None:
        made: Store = service.store.of(service.name)
        return made
    return open_store(config.store_url(service.name), service.name)


def open_catalogue(service: Service, config: Config, store: Store) -> Catalogue:
    """What operators ask of the opened ``store`` of a service, and do to it."""
    url = config.store_url(service.name) if service.store is None else f"{service.store.scheme}:"
    factory, _ = _leaf("eventkeel.catalogues", url, "store")
    made: Catalogue = factory(store)
    return made


def _leaf(group: str, url: str, what: str) -> tuple[Callable[..., Any], str]:
    scheme, _, rest = url.partition(":")
    target = _BUILT_IN[group].get(scheme)
    if target is None:
        return _plugin(group, scheme, f"{what} URL {mask(url)!r}"), rest
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name), _path(scheme, rest)


def _plugin(group: str, scheme: str, where: str) -> Callable[..., Any]:
    """What another package has brought for ``scheme``."""
    from importlib.metadata import entry_points  # a megabyte, which a process on our own brokers need not hold

    brought: Callable[..., Any]
    for point in entry_points(group=group, name=scheme):
        brought = point.load()
        return brought
    known = ", ".join(f"{each}:" for each in _BUILT_IN[group])
    raise ConfigurationError(f"{where}: nothing is installed for {mask(scheme)!r}; it begins with one of {known}")


def _path(scheme: str, rest: str) -> str:
    """``sqlite:a/b`` and ``sqlite:///a/b`` are paths from here, ``sqlite:////a/b`` one from the root."""
    return rest.removeprefix("///") if scheme in _FILES else rest


class Runtime:
    """One service running in this process. ``start``, then ``stop``; both may be called twice."""

    def __init__(
        self,
        service: Service,
        config: Config,
        *,
        mode: Mode = "worker",
        clock: Clock | None = None,
        dice: Callable[[], float] = random.random,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.service, self.config, self.mode = service, config, mode
        self.clock = clock or SystemClock()
        self.store = store_of(service, config)
        self.transport = open_transport(config.broker_url, self.clock)
        self.context = Context(
            service=service.name,
            group=service.group,
            member=f"{SENDS_ONLY if mode == 'relay' else ''}{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}",
            store=self.store,
            transport=self.transport,
            routes=service.routes(),
            clock=self.clock,
            dice=dice,
            new_id=self._new_id,
            observers=observers,
            numbers=self._numbers(),
        )
        self.lanes: list[Lane] = []
        self.ownership: Ownership | None = None
        self.relay: Relay | None = None
        self.due: Due | None = None
        self.failure: asyncio.Future[None] | None = None
        self._subscription: Membership | None = None
        self._intake: Intake | None = None
        self._parts: list[Part] = []
        self._started = False

    @property
    def unwell(self) -> str:
        """Why this process does not do all that it should, with what to do about it; empty: it does."""
        return self.ownership.halted if self.ownership is not None else ""

    def _new_id(self) -> bytes:
        return uuid7(self.clock.now())

    def _numbers(self) -> Numbers:
        config = self.config
        lanes = config.lanes or (4 if self.store.caps.parallel_units else 1)
        return Numbers(
            batch_size=config.batch_size,
            lanes=lanes,
            steps=config.steps_concurrency,
            lease=config.lease,
            deadline=self.service.deadline,
            budget_count=config.budget_count or max(2000, 4 * lanes * config.batch_size),
            budget_bytes=config.budget_bytes,
            retention=config.retention_days * 86400.0,
            start=config.start,
        )

    # -- start ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open store and broker, declare what is missing, begin. Raises ConfigurationError."""
        if self._started:
            return
        self._started = True
        self.failure = asyncio.get_running_loop().create_future()
        await self.store.open()
        await self.store.migrate(self._schema(), apply=True)
        if any(consumer.session for consumer in self.service.consumers):
            sessions = importlib.import_module("eventkeel.integrations.sqlalchemy")
            await sessions.ready(self.store, self.service.name, sync=self.service.sync)
        self.service.opened(OpenDoor(self.context))
        if self.mode == "publisher":
            return
        await self.transport.open()
        self._check_events()
        self._check_retention()
        await self._declare()
        relay = self._wire()
        self.store.on_commit(outbox=relay.wake, gates=self.due.wake if self.due else relay.wake)
        if self.mode == "worker" and self.context.routes.consumers:
            await self._check_start()
        assert self.ownership is not None
        await self.ownership.balance()
        for part in self._parts:
            part.failure = self.failure
            part.start()

    def _schema(self) -> Schema:
        consumers = tuple(
            ConsumerName(consumer.name, tuple(f"{spec.topic}/{spec.type}" for spec in consumer.specs))
            for consumer in self.service.consumers
        )
        return Schema(self.service.name, self.service.group, self.service.schema, consumers)

    def _check_events(self) -> None:
        """What a first message would find out is found out now."""
        for consumer in self.service.consumers:
            for spec in consumer.specs:
                codec.prepare(spec)
                if spec.identity == POSITION and (not self.transport.caps.log or self.transport.caps.settle == "each"):
                    raise ConfigurationError(
                        f"{spec.where} says identity='position', and this broker's messages have no position that "
                        "stays; name the field that makes two publishes the same fact"
                    )

    def _check_retention(self) -> None:
        """The inbox outlives what the broker can bring again: forgotten there, it would take effect twice."""
        memory, retention = self.transport.caps.memory, self.context.numbers.retention
        if memory and self.mode == "worker" and retention < memory + REFILLING:
            raise ConfigurationError(
                f"service {self.service.name}: retention_days={self.config.retention_days:g}, and the broker's history "
                f"goes back {memory / 86400:g} days: an event that is read from it again would take effect twice. Set "
                f"retention_days={(memory + REFILLING) / 86400:g} or more (a day beyond the history, for the time that "
                "a refill takes), or a shorter history= in the broker's URL"
            )

    async def _declare(self) -> None:
        topics = tuple(TopicWant(topic, self.config.partitions) for topic in sorted(declared_topics()))
        groups: tuple[GroupWant, ...] = ()
        if self.mode == "worker" and self.context.routes.topics:
            groups = (GroupWant(self.service.group, self.store.store_id, self.context.routes.topics),)
        for finding in await self.transport.topology(Topology(topics, groups), apply=True):
            if finding.kind == "refused":
                kind = GroupTaken if finding.what.startswith("group") else ConfigurationError
                raise kind(f"{finding.what}: {finding.detail}")

    async def _check_start(self) -> None:
        """A group that the broker knows and the store does not: somebody has to say where it stands."""
        if self.config.start != "none":
            return
        view = await self.store.lease(
            self.service.group, self.context.member, {}, ttl=self.config.lease, now=self.clock.now()
        )
        if any(row.slice.topic in self.context.routes.topics for row in view.owners):
            return
        known = [lag for lag in await self.transport.lag(self.service.group) if lag.settled]
        if known:
            raise PositionError(
                f"group {self.service.group!r} has settled {known[0].slice} up to {known[0].settled} at the broker, "
                f"but the store of {self.service.name!r} has never known it. Choose: --start earliest (handle "
                "everything again; the inbox is empty) or --start group (go on where the group stood)"
            )

    def _wire(self) -> Relay:
        context, numbers = self.context, self.context.numbers
        consumes = self.mode == "worker" and bool(context.routes.consumers)
        if consumes:
            budget = Budget(numbers.budget_count, numbers.budget_bytes)
            self._subscription = Membership(
                lambda: self.transport.subscribe(self.service.group, context.routes.topics, budget)
            )
        self.ownership = Ownership(context, self._subscription, self.lanes)
        if consumes:
            ownership = self.ownership
            self.lanes += [Lane(context, ownership.settle, ownership.fenced) for _ in range(numbers.lanes)]
            if any(consumer.steps for consumer in context.routes.consumers):
                self.lanes.append(StepLane(context, ownership.settle, ownership.fenced, numbers.steps))
        self.relay = Relay(context, self.ownership, self.config.partitions)
        self._parts = [*self.lanes, self.ownership, self.relay]
        if self._subscription is not None:
            self._intake = Intake(context, self._subscription, self.lanes, self.ownership)
            self._parts += [self._intake, Housekeeping(context)]
        if self.mode == "worker":  # one that only publishes has timers, too
            self.due = Due(context)
            self._parts.append(self.due)
        return self.relay

    # -- stop ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain: stop taking, finish the running, flush, settle, send the outbox, release, leave."""
        if not self._started:
            return
        self._started = False
        self.service.opened(None)
        if self._intake is not None:
            await self._intake.stop()
        handling: list[Part] = [*self.lanes, self.due] if self.due is not None else []
        await asyncio.gather(*(self._within(part.stop(), part) for part in handling))
        if self.ownership is not None and self.relay is not None:
            await self._within(self.relay.stop(), self.relay)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    while await self.relay.wave():
                        pass
            for part in reversed(self._parts):
                await self._within(part.stop(), part)
            with contextlib.suppress(Exception):
                await self.ownership.leave()
        if self._subscription is not None:
            await self._subscription.close(2.0)
        if self.mode != "publisher":
            await self.transport.close(5.0)
        await self.store.close()

    async def abandon(self) -> None:
        """End as a crash would: nothing is finished, flushed or released. For tests."""
        self._started = False
        self.service.opened(None)
        for part in self._parts:
            part.kill()
        await asyncio.gather(*(part.ended() for part in self._parts))
        if self.mode != "publisher":
            await self.transport.close(0.0)
        await self.store.close()

    async def _within(self, stopping: Any, part: Part) -> None:
        try:
            async with asyncio.timeout(DRAIN):
                await stopping
        except TimeoutError:
            part.kill()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set, or something happens that only an operator can mend (raised)."""
        await self.start()
        spare_collector()
        assert self.failure is not None
        waiting: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([waiting, self.failure], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            await self.stop()
        if self.failure.done():
            self.failure.result()


# ------------------------------------------------------------------ processes


def spare_collector() -> None:
    """For a process that is the service's own, once it is up: what was made so far stays, and a message makes no
    cycles, so the cycle collector has little to find. Its usual thresholds make it look again and again at every
    message of a batch, which is a tenth of the time of each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def lifespan(service: Service) -> contextlib.AbstractAsyncContextManager[None]:
    """See ``Service.lifespan``."""
    return _lifespan(service)


@contextlib.asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    runtime = Runtime(service, Config.load(service.settings))
    try:
        await runtime.start()
        yield
    finally:
        await runtime.stop()


def run_worker(reference: str, config: Config, observers: Sequence[Observer] = ()) -> None:
    """Run a service's handlers and relay in this process until SIGTERM or SIGINT. Blocks."""
    service = load_service(reference)
    _loop(_worker(service, config, observers))


async def _worker(service: Service, config: Config, observers: Sequence[Observer]) -> None:
    await Runtime(service, config, observers=observers).run(_stop_signal())


def run_http(reference: str, config: Config, host: str, port: int) -> None:
    """Serve a service's ASGI application in this process until SIGTERM or SIGINT. Blocks."""
    service = load_service(reference)
    if service.http is None:
        raise ConfigurationError(
            f"service {service.name!r} has no HTTP application: Service({service.name!r}, http=app)"
        )
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigurationError("--http needs uvicorn: pip install 'eventkeel[http]'") from error
    _loop(_serve(service, config, uvicorn.Config(service.http, host=host, port=port, log_level="warning")))


async def _serve(service: Service, config: Config, http: Any) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            """Signals are ours: uvicorn sends them to itself again when it is done, and so ends us half-way."""
            return contextlib.nullcontext()

    stop, server = _stop_signal(), Server(http)
    runtime = Runtime(service, config, mode="publisher")
    try:
        await runtime.start()
        serving = asyncio.ensure_future(server.serve())
        asked = asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        server.should_exit = True
        await serving
    finally:
        await runtime.stop()


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ask)
    return stop


def _loop(main: Any) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
