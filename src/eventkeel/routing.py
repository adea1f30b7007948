"""From a handler function to a ``Consumer``: the signature says what it wants, checked at start-up.

(event: E)                      the event; ``A | B`` for a handler on several types
(events: list[E])               a batch handler
Transaction / SyncTransaction   effects, in this unit of work
Steps / SyncSteps               calls to third parties, and one unit of work at the end
Delivery / list[Delivery]       ids, attempt, headers, position, logger
AsyncSession / Session          SQLAlchemy's, on the same transaction
anything given by provide()     made by its factory for each call
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from eventkeel.errors import ConfigurationError, SignatureError
from eventkeel.event import EventSpec, spec_of
from eventkeel.handling import SyncTransaction, Transaction
from eventkeel.message import Delivery
from eventkeel.policy.retry import Retry
from eventkeel.steps import Steps, SyncSteps

Want = Literal["event", "events", "tx", "steps", "delivery", "deliveries", "session"] | Callable[[], Any]


class Consumer(msgspec.Struct, frozen=True, eq=False):
    """A handler as registered: a stable name, the event types it handles, and what it wants."""

    name: str
    """``service/handler``: part of every inbox key, so it must not change by accident."""
    call: Callable[..., Any]
    specs: tuple[EventSpec, ...]
    wants: tuple[tuple[str, Want], ...]
    batch: bool
    sync: bool
    exclusive: bool
    retry: Retry
    plain: bool
    """It wants exactly (event, tx), by position: the fast way to call it."""
    session: bool = False
    """It wants an SQLAlchemy session. Under that name it is called with the transaction, and makes one of it."""
    steps: bool = False
    """It talks to third parties: runs alone, with no transaction open."""

    def arguments(self, event: object, tx: object, delivery: object) -> dict[str, Any]:
        """Keyword arguments for one delivery (or, for a batch handler, lists)."""
        made: dict[str, Any] = {}
        for name, want in self.wants:
            match want:
                case "event" | "events":
                    made[name] = event
                case "tx" | "session" | "steps":
                    made[name] = tx
                case "delivery" | "deliveries":
                    made[name] = delivery
                case _:
                    made[name] = want()
        return made

    @property
    def wants_delivery(self) -> bool:
        return any(want in ("delivery", "deliveries") for _, want in self.wants)


def make_consumer(
    service: str,
    call: Callable[..., Any],
    events: tuple[type, ...],
    *,
    name: str | None,
    exclusive: bool,
    retry: Retry,
    providers: Mapping[Any, Callable[[], Any]],
    scope: Mapping[str, Any],
) -> Consumer:
    """Check a handler and make its consumer. Raises SignatureError with what to write instead."""
    where = f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', call)}"
    if not events:
        raise SignatureError(f"{where}: say which event it handles: @service.on(OrderCreated)")
    specs = tuple(spec_of(event) for event in events)
    hints = _hints(call, where, scope)
    wants = tuple((name_, _want(hint, name_, events, providers, where)) for name_, hint in hints.items())
    kinds = [want for _, want in wants]
    sync = not inspect.iscoroutinefunction(call)
    _check_kinds(kinds, sync, hints, where)
    steps = "steps" in kinds
    if steps:
        _check_steps(kinds, exclusive, where)
    batch = "events" in kinds
    names = [n for n, _ in wants]
    parameters = list(inspect.signature(call).parameters.values())
    plain = kinds == ["event", "tx"] and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) and len(names) == 2
    if name is None:
        name = getattr(call, "__name__", "handler")
    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise SignatureError(f'{where}: a handler needs a plain stable name; write name="take_payment"')
    session = "session" in kinds
    if session:
        call = _with_session(call, wants, hints, sync, where)
    return Consumer(f"{service}/{name}", call, specs, wants, batch, sync, exclusive, retry, plain, session, steps)


def _with_session(
    call: Callable[..., Any], wants: tuple[tuple[str, Want], ...], hints: Mapping[str, Any], sync: bool, where: str
) -> Callable[..., Any]:
    names = {want: name for name, want in wants if isinstance(want, str)}
    name = names["session"]
    if sync != (_session_kind(hints[name]) == "Session"):
        kinds = ("a synchronous handler", "Session (or write async def)") if sync else ("an async one", "AsyncSession")
        raise SignatureError(f"{where}: {kinds[0]} asks for {kinds[1]}")
    sessions = importlib.import_module("eventkeel.integrations.sqlalchemy")
    made: Callable[..., Any] = sessions.wrapped(call, name, hints[name], names.get("tx"), sync=sync)
    return made


def _session_kind(hint: Any) -> str | None:
    """Which of SQLAlchemy's sessions it is, or is made of; found without importing SQLAlchemy."""
    for base in getattr(hint, "__mro__", ()):
        if base.__module__.startswith("sqlalchemy.") and base.__name__ in ("AsyncSession", "Session"):
            return str(base.__name__)
    return None


def _hints(call: Callable[..., Any], where: str, scope: Mapping[str, Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(call, localns=dict(scope))
    except Exception as error:
        raise SignatureError(f"{where}: an annotation cannot be read: {error}") from error
    hints.pop("return", None)
    missing = [p for p in inspect.signature(call).parameters if p not in hints]
    if missing:
        raise SignatureError(
            f"{where}: annotate {', '.join(missing)}; a handler is called by what its signature says, "
            "such as (order: OrderCreated, tx: Transaction)"
        )
    return hints


def _want(
    hint: Any, name: str, events: tuple[type, ...], providers: Mapping[Any, Callable[[], Any]], where: str
) -> Want:
    if hint in events or _members(hint) == set(events):
        return "event"
    if typing.get_origin(hint) is list:
        (inner,) = typing.get_args(hint) or (None,)
        if inner in events or _members(inner) == set(events):
            return "events"
        if inner is Delivery:
            return "deliveries"
    if hint is Transaction or hint is SyncTransaction:
        return "tx"
    if hint is Delivery:
        return "delivery"
    if hint is Steps or hint is SyncSteps:
        return "steps"
    provider = providers.get(hint)
    if provider is not None:
        return provider
    if _session_kind(hint) is not None:
        return "session"
    wanted = " | ".join(event.__name__ for event in events)
    unknown = getattr(hint, "__name__", hint)
    raise SignatureError(
        f"{where}: nothing can be given for {name}: {unknown}. Ask for the event "
        f"({wanted}, or list[{wanted}]), Transaction or Steps, Delivery, or say service.provide({unknown}, …) "
        "above the handler"
    )


def _members(hint: Any) -> set[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set(typing.get_args(hint))
    return {hint}


def _check_kinds(kinds: list[Want], sync: bool, hints: Mapping[str, Any], where: str) -> None:
    if kinds.count("event") + kinds.count("events") != 1:
        raise SignatureError(f"{where}: ask for the event exactly once")
    for kind in ("tx", "steps", "delivery", "deliveries", "session"):
        if kinds.count(kind) > 1:
            raise SignatureError(f"{where}: asks for {kind} twice")
    if "events" in kinds and "delivery" in kinds:
        raise SignatureError(f"{where}: a batch handler asks for list[Delivery], not Delivery")
    if "event" in kinds and "deliveries" in kinds:
        raise SignatureError(f"{where}: list[Delivery] goes with list[Event]; write delivery: Delivery")
    if sync and Transaction in hints.values():
        raise SignatureError(f"{where}: a synchronous handler asks for SyncTransaction (or write async def)")
    if not sync and SyncTransaction in hints.values():
        raise SignatureError(f"{where}: an async handler asks for Transaction, not SyncTransaction")
    if sync and Steps in hints.values():
        raise SignatureError(f"{where}: a synchronous handler asks for SyncSteps (or write async def)")
    if not sync and SyncSteps in hints.values():
        raise SignatureError(f"{where}: an async handler asks for Steps, not SyncSteps")


def _check_steps(kinds: list[Want], exclusive: bool, where: str) -> None:
    """No transaction is open while a handler with steps runs: what would need one is refused."""
    if "tx" in kinds:
        raise SignatureError(
            f"{where}: asks for a transaction and for steps. Keep the steps, and write at the end: "
            "async with steps.transaction() as tx"
        )
    if "session" in kinds:
        raise SignatureError(f"{where}: a session needs a transaction, and none is open while steps run; leave it out")
    if "events" in kinds:
        raise SignatureError(f"{where}: a handler with steps takes one event at a time; ask for the event, not a list")
    if exclusive:
        raise SignatureError(
            f"{where}: exclusive=True holds a lock for as long as its transaction, and a handler with steps has none "
            "while it calls others. Leave it out: deliveries of one key come one after another anyway"
        )


class Routes:
    """Which consumers an event type has in one service, and which types it passes over."""

    def __init__(self, consumers: tuple[Consumer, ...], ignored: frozenset[tuple[str, str]]) -> None:
        self.consumers = consumers
        self.ignored = ignored
        self._by_type: dict[tuple[str, str], list[Consumer]] = {}
        names: set[str] = set()
        for consumer in consumers:
            if consumer.name in names:
                raise ConfigurationError(f'two handlers are called {consumer.name!r}; give one of them name="…"')
            names.add(consumer.name)
            for spec in consumer.specs:
                self._by_type.setdefault((spec.topic, spec.type), []).append(consumer)
        self.topics = tuple(sorted({topic for topic, _ in self._by_type}))
        self.by_name = {consumer.name: consumer for consumer in consumers}

    def of(self, topic: str, type: str) -> list[Consumer]:
        """Consumers of a type that is declared; empty: this service has nothing to do with it."""
        return self._by_type.get((topic, type), [])
