"""``Steps``: what a handler receives that talks to third parties (or ``SyncSteps``, in a synchronous service).

    @payments.on(OrderPlaced)
    async def charge(order: OrderPlaced, steps: Steps) -> None:
        receipt = await steps.run("charge", gateway.charge, order.amount, key=steps.key("charge"))
        async with steps.transaction() as tx:
            tx.write("insert into payments (order_id, receipt) values (:order_id, :receipt)", …)
            tx.publish(PaymentSucceeded(…))

No transaction is open while it runs. A step's result is kept in the service's database as soon as the step is
over, and the step is not run again from then on; what happens before that may happen again, under the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec

from eventkeel.drive import Program, drive, drive_sync
from eventkeel.errors import StepRefused
from eventkeel.handling import Params, SyncTransaction, Transaction
from eventkeel.ports.store import Row, Unit

P = ParamSpec("P")
T = TypeVar("T")

MOST_BYTES = 1024 * 1024
"""Of one journalled result."""
_ANNOTATED: Any = object()


class Run(Protocol):
    """One run of a handler with steps, as the engine makes it. Its programs are run on the unit that they are given."""

    unit: Unit
    """Of ``steps.transaction()``."""

    def key(self, step: str) -> str: ...

    def short(self) -> Unit:
        """A unit for one short transaction."""
        ...

    def start(self, unit: Unit, step: str) -> Program[bytes | None]:
        """The journalled result; None: run it now, the delivery is still ours."""
        ...

    def called(self, step: str) -> None:
        """It was run; the result is not journalled yet."""
        ...

    def failed(self, step: str) -> None:
        """It was not run to its end: its name is free again."""
        ...

    def record(self, unit: Unit, step: str, result: bytes) -> Program[bytes]:
        """Journal the result; the one that counts."""
        ...

    def ask(self, unit: Unit, sql: str, params: Params) -> Program[list[Row]]: ...

    def open(self) -> Program[None]: ...

    def commit(self) -> Program[None]: ...

    def undo(self, error: BaseException) -> Program[None]: ...

    def handle(self) -> Transaction: ...

    def sync_handle(self) -> SyncTransaction: ...


class _Base:
    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    def key(self, step: str) -> str:
        """The idempotency key of a step: a UUID in text, made of this consumer, this event and ``step``. The same after
        a crash, a redelivery or a redrive, on every worker; give it to the third party with the call."""
        return self._run.key(step)


class Steps(_Base):
    """Calls to third parties, in an asynchronous service. Use it only inside the handler that received it."""

    __slots__ = ()

    @overload
    async def run(
        self, step: str, call: Callable[..., Any], /, *args: Any, result_type: type[T], **kwargs: Any
    ) -> T: ...

    @overload
    async def run(self, step: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def run(self, step: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def run(
        self, step: str, call: Callable[..., Any], /, *args: Any, result_type: Any = _ANNOTATED, **kwargs: Any
    ) -> Any:
        """Call ``call(*args, **kwargs)`` unless this step of this delivery was journalled before; its result.

        ``call`` may be ``async`` or not (then it runs in a thread). Its result is kept as JSON, by its annotation or
        ``result_type``, and is what every later run of the handler is given; where two runs met, the first one's. It
        must not be larger than 1 MB. What ``call`` raises is raised here and is not kept: the step runs again with
        the next attempt. So return what is an answer ("declined"), and raise what is none (a timeout).

        At least once: a crash between the call and its journal repeats it, with the same ``steps.key(step)``.
        Raises StepRefused (no retry helps) for a name used twice, a result that cannot be kept, or a step after
        ``transaction()``; Fenced where this delivery belongs to another process by now.
        """
        result = _Result(step, call, result_type)
        known = await self._short(lambda unit: self._run.start(unit, step))
        if known is None:
            try:
                made = await _awaited(call, args, kwargs)
            except BaseException:
                self._run.failed(step)
                raise
            self._run.called(step)
            body = result.encode(made)
            known = await self._short(lambda unit: self._run.record(unit, step, body))
        return result.decode(known)

    async def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """Rows of the service's own database, as they are committed now; nothing stays locked or open."""
        return await self._short(lambda unit: self._run.ask(unit, sql, params))

    async def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """The first row, or None. As ``fetch_all``."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    async def fetch_value(self, sql: str, params: Params = ()) -> Any:
        """The first column of the first row, or None. As ``fetch_all``."""
        row = await self.fetch_one(sql, params)
        return row[0] if row else None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """The handler's one unit of work, and the last thing it does: what is written and published in it commits
        with the delivery's inbox row, or not at all. A handler that ends without it commits the inbox row alone.

        Raises StepRefused the second time. Where the delivery was handled elsewhere meanwhile, the handler ends here.
        """
        run = self._run
        await drive(run.open(), run.unit.connection)
        try:
            yield run.handle()
        except BaseException as error:
            await drive(run.undo(error), run.unit.connection)
            raise
        await drive(run.commit(), run.unit.connection)

    async def _short(self, make: Callable[[Unit], Program[T]]) -> T:
        unit = self._run.short()
        try:
            result = await drive(make(unit), unit.connection)
        except Exception:
            unit.close()
            raise
        except BaseException:
            unit.close(discard=True)
            raise
        unit.close()
        return result


class SyncSteps(_Base):
    """Calls to third parties, in a synchronous service: as ``Steps``, without await."""

    __slots__ = ()

    @overload
    def run(self, step: str, call: Callable[..., Any], /, *args: Any, result_type: type[T], **kwargs: Any) -> T: ...

    @overload
    def run(self, step: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def run(
        self, step: str, call: Callable[..., Any], /, *args: Any, result_type: Any = _ANNOTATED, **kwargs: Any
    ) -> Any:
        """As ``Steps.run``; ``call`` is a plain function and runs in the handler's thread."""
        result = _Result(step, call, result_type)
        known = self._short(lambda unit: self._run.start(unit, step))
        if known is None:
            try:
                made = call(*args, **kwargs)
            except BaseException:
                self._run.failed(step)
                raise
            self._run.called(step)
            body = result.encode(made)
            known = self._short(lambda unit: self._run.record(unit, step, body))
        return result.decode(known)

    def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """As ``Steps.fetch_all``."""
        return self._short(lambda unit: self._run.ask(unit, sql, params))

    def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """As ``Steps.fetch_one``."""
        rows = self.fetch_all(sql, params)
        return rows[0] if rows else None

    def fetch_value(self, sql: str, params: Params = ()) -> Any:
        """As ``Steps.fetch_value``."""
        row = self.fetch_one(sql, params)
        return row[0] if row else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[SyncTransaction]:
        """As ``Steps.transaction``."""
        run = self._run
        drive_sync(run.open(), run.unit.sync_connection)
        try:
            yield run.sync_handle()
        except BaseException as error:
            drive_sync(run.undo(error), run.unit.sync_connection)
            raise
        drive_sync(run.commit(), run.unit.sync_connection)

    def _short(self, make: Callable[[Unit], Program[T]]) -> T:
        unit = self._run.short()
        try:
            return drive_sync(make(unit), unit.sync_connection)
        finally:
            unit.close()


# ------------------------------------------------------------------ results


class _Result:
    """How a step's result becomes JSON and comes back. What cannot be kept is refused before the call if possible."""

    def __init__(self, step: str, call: Callable[..., Any], said: Any) -> None:
        self._where = f"step {step!r}"
        kind = _annotated(call) if said is _ANNOTATED else said
        try:
            known = msgspec.inspect.type_info(kind)
            self._decoder = msgspec.json.Decoder(kind)
        except Exception as error:  # whatever the type makes of being looked at
            raise self._unfit(kind, error) from error
        if isinstance(known, msgspec.inspect.CustomType):
            raise self._unfit(kind, None)

    def encode(self, made: object) -> bytes:
        try:
            body = msgspec.json.encode(made)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise self._unfit(type(made), error) from error
        if len(body) > MOST_BYTES:
            raise StepRefused(f"{self._where}: its result is {len(body)} bytes; keep what you need of it, below 1 MB")
        return body

    def decode(self, kept: bytes) -> Any:
        try:
            return self._decoder.decode(kept)
        except msgspec.MsgspecError as error:
            raise StepRefused(
                f"{self._where}: what is journalled of it is not what its annotation says now ({error}). Give the "
                "step another name where its result has changed"
            ) from error

    def _unfit(self, kind: Any, error: Exception | None) -> StepRefused:
        name = getattr(kind, "__name__", kind)
        return StepRefused(
            f"{self._where}: its result ({name}) cannot be kept as JSON{f' ({error})' if error else ''}. Return plain "
            "values, a dataclass or a msgspec.Struct, or say result_type=…"
        )


def _annotated(call: Callable[..., Any]) -> Any:
    """What a function says that it returns; Any where it says nothing that can be read."""
    while isinstance(call, functools.partial):
        call = call.func
    told: Any = call if hasattr(call, "__annotations__") else type(call).__call__
    try:
        return typing.get_type_hints(told).get("return", Any)
    except Exception:  # names of a local scope, or of typing only: as if nothing was said
        return Any


# ------------------------------------------------------------------ calls


async def _awaited(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _is_async(call):
        return await call(*args, **kwargs)
    made = await _in_thread(functools.partial(call, *args, **kwargs))
    return await made if inspect.isawaitable(made) else made


def _is_async(call: Callable[..., Any]) -> bool:
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


async def _in_thread(call: Callable[[], T]) -> T:
    """In a thread of its own: one that hangs for ever takes no place away from the next."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as stop:
            error = RuntimeError(f"a step raised StopIteration({stop.value!r})")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="eventkeel step", daemon=True).start()
    return await future
