"""``Service``: what users declare. Handlers, schema and group; no I/O until it is run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from eventkeel.errors import ConfigurationError, SignatureError
from eventkeel.handling import SyncTransaction, Transaction
from eventkeel.policy.retry import Retry
from eventkeel.routing import Consumer, Routes, make_consumer

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Door(Protocol):
    """How a running process lets code outside handlers open transactions."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]: ...

    def sync_transaction(self) -> AbstractContextManager[SyncTransaction]: ...

    def outbox(self, session: Any) -> Outbox: ...


class Outbox(Protocol):
    """Where events go that are published with a session of the user's own."""

    def publish(self, event: object, *, delay: timedelta | float | None = None, at: datetime | None = None) -> UUID:
        """Publish with the session's commit (with ``delay`` or ``at`` later, as ``tx.publish``), or not at all. Returns
        the event's id. Raises PublishError."""
        ...


class OutsideTransaction:
    """``async with`` gives a Transaction, ``with`` a SyncTransaction; commits at the end of the block."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._async: AbstractAsyncContextManager[Transaction] | None = None
        self._sync: AbstractContextManager[SyncTransaction] | None = None

    async def __aenter__(self) -> Transaction:
        self._async = self._door.transaction()
        return await self._async.__aenter__()

    async def __aexit__(self, *exc: Any) -> bool | None:
        assert self._async is not None
        return await self._async.__aexit__(*exc)

    def __enter__(self) -> SyncTransaction:
        self._sync = self._door.sync_transaction()
        return self._sync.__enter__()

    def __exit__(self, *exc: Any) -> bool | None:
        assert self._sync is not None
        return self._sync.__exit__(*exc)


class Service:
    """Handlers, a store and a consumer group, deployed as one.

    ``schema``: the service's own tables, as SQL run at every start, so it must be repeatable
    (``create table if not exists …``). ``http``: any ASGI application, served beside the workers by
    ``eventkeel run --http HOST:PORT``. ``retry``: what becomes of failed deliveries, unless a
    handler says otherwise. ``deadline``: seconds a handler may take before its unit is rolled back.
    """

    def __init__(
        self,
        name: str,
        *,
        group: str | None = None,
        schema: str | Iterable[str] = (),
        http: Any = None,
        retry: Retry | None = None,
        deadline: float = 30.0,
    ) -> None:
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigurationError(f"a service's name is made of letters, digits, - _ and ., not {name!r}")
        if deadline <= 0:
            raise ConfigurationError(f"service {name!r}: deadline is in seconds and above 0, not {deadline!r}")
        self.name = name
        self.group = group or name
        self.schema: tuple[str, ...] = (schema,) if isinstance(schema, str) else tuple(schema)
        self.http = http
        self.retry = retry or Retry()
        self.deadline = deadline
        self.settings: dict[str, Any] = {}
        self.store: Any = None
        """A store that ``configure`` was given in place of a URL."""
        self._consumers: list[Consumer] = []
        self._providers: dict[Any, Callable[[], Any]] = {}
        self._ignored: set[tuple[str, str]] = set()
        self._door: Door | None = None

    def on(
        self, *events: type, name: str | None = None, exclusive: bool = False, retry: Retry | None = None
    ) -> Callable[[F], F]:
        """Register a handler for one event type, or for several that it must see in order.

        Order is kept per (topic, key) within one handler: handlers that depend on each other's
        order are one handler, ``@service.on(OrderPlaced, OrderPaid)``. ``name``: the stable name
        under which the inbox remembers it (default: the function's). ``exclusive``: one unit at a
        time per key over all partitions. Raises SignatureError.
        """
        caller = sys._getframe(1)
        scope = {**caller.f_globals, **caller.f_locals}

        def register(call: F) -> F:
            consumer = make_consumer(
                self.name,
                call,
                events,
                name=name,
                exclusive=exclusive,
                retry=retry or self.retry,
                providers=self._providers,
                scope=scope,
            )
            if self._consumers and self._consumers[0].sync != consumer.sync:
                first = self._consumers[0]
                raise SignatureError(
                    f"service {self.name!r} is {'synchronous' if first.sync else 'asynchronous'} as a whole "
                    f"(its first handler is {first.name}); {consumer.name} is not. Make two services of it"
                )
            self._consumers.append(consumer)
            return call

        return register

    def provide(self, kind: type[T], factory: Callable[[], T]) -> None:
        """Handlers below that ask for ``kind`` are given what ``factory()`` returns, made anew for
        each call (return the same object for a shared one)."""
        self._providers[kind] = factory

    def ignore(self, topic: str, *types: str) -> None:
        """Pass over these types of a topic, which this process declares no class for. Without it
        an unknown type blocks its key, because it usually means that a deploy is missing."""
        self._ignored.update((topic, type) for type in types)

    def configure(self, **settings: Any) -> Service:
        """Settings for ``lifespan`` and tests, by the names of the configuration reference
        (``broker=…, store=…, data=…``). The command line and ``scripts`` do not need it.

        ``store`` may be an object too, such as ``SQLAlchemyStore(engine)``: then it is this service's store
        wherever it runs, whatever URL was said."""
        if "store" in settings and not isinstance(settings["store"], str | None):
            self.store = settings.pop("store")
        self.settings.update(settings)
        return self

    @property
    def sync(self) -> bool:
        """Its handlers are synchronous, all of them."""
        return bool(self._consumers) and self._consumers[0].sync

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        return tuple(self._consumers)

    def routes(self) -> Routes:
        return Routes(self.consumers, frozenset(self._ignored))

    def transaction(self) -> OutsideTransaction:
        """A transaction outside handlers: ``async with service.transaction() as tx:`` (``with`` in
        a synchronous service). What it writes and publishes commits together at the end of the
        block, or not at all.

        Raises ConfigurationError where the service is not open in this process, and
        NestedTransaction inside a handler of the same service, which would wait for itself.
        """
        return OutsideTransaction(self._opened())

    def outbox(self, session: Any) -> Outbox:
        """The outbox of the transaction of your own SQLAlchemy session (``AsyncSession`` or ``Session``) on the
        service's database: ``service.outbox(session).publish(event)`` commits with the session's next commit,
        once, and is dropped with its rollback, or with that of the savepoint in which it was said.

        Raises ConfigurationError where the service is not open in this process, and NestedTransaction inside a
        handler of the same service, which has a ``tx`` to publish with.
        """
        return self._opened().outbox(session)

    def _opened(self) -> Door:
        if self._door is None:
            raise ConfigurationError(
                f"service {self.name!r} is not open in this process. Serve the application with "
                f"'eventkeel run … --http HOST:PORT', or give it lifespan=service.lifespan"
            )
        return self._door

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[None]:
        """For ``Starlette(lifespan=service.lifespan)`` and ``FastAPI(…)``: relay and handlers run
        inside the web process for as long as it serves, and drain when it stops."""
        made: AbstractAsyncContextManager[None] = importlib.import_module("eventkeel.app").lifespan(self)
        return made

    def opened(self, door: Door | None) -> None:
        """Engine only: a process opened (or closed) the service's store."""
        self._door = door

    def __repr__(self) -> str:
        return f"Service({self.name!r}, group={self.group!r}, {len(self._consumers)} handlers)"
