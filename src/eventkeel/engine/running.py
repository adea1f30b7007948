"""Runs a unit of work with user code in it: on the event loop or in a thread, within its deadline.

Whatever the user's code does, the loop that runs it gets one of three answers: a result, UnitFailed,
or its own cancellation.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import traceback
from collections.abc import Generator
from typing import Any, TypeVar

from eventkeel.drive import drive, drive_sync
from eventkeel.engine.inside import INSIDE
from eventkeel.engine.unit_of_work import UnitFailed
from eventkeel.errors import MalformedMessage, UnknownType
from eventkeel.handling import Scope
from eventkeel.ports.store import Unit

T = TypeVar("T")

ERROR_TEXT = 4096
"""Characters of error text kept with a dead letter."""


class GivenUp(UnitFailed):
    """The unit took too long: its connection was closed, and what still runs of it can do no harm any more."""


class Deadline:
    """Seconds that a unit may take, from the moment its transaction begins: waiting for the database is
    not the handler's time."""

    def __init__(self, seconds: float, *, sync: bool) -> None:
        self.seconds, self.sync = seconds, sync
        self._loop = asyncio.get_running_loop()
        self.limit = asyncio.timeout(None)

    def begun(self) -> None:
        """The transaction is open. Called where the unit runs: on the loop, or in its thread."""
        if self.sync:
            self._loop.call_soon_threadsafe(self._start)
        else:
            self._start()

    def _start(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is over already
            self.limit.reschedule(self._loop.time() + self.seconds)


class Runner:
    """Runs one unit at a time; a synchronous one in a thread of its own."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None

    async def run(self, program: Generator[Any, Any, T], unit: Unit, scope: Scope, deadline: Deadline) -> T:
        """Raises what ``program`` raises, and GivenUp after the deadline. Cancelled, it gives the unit up too."""
        try:
            async with deadline.limit:
                if not deadline.sync:
                    return await drive(program, unit.connection)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._own_thread(), drive_sync, program, unit.sync_connection)
        except TimeoutError as error:
            self._give_up(unit, scope)
            late = TimeoutError(f"{scope.name} took longer than {deadline.seconds:g} s")
            raise GivenUp(None, late) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._give_up(unit, scope)
                raise
            raise UnitFailed(None, RuntimeError(f"{scope.name} raised CancelledError")) from error

    def close(self) -> None:
        """Wait for nothing."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _give_up(self, unit: Unit, scope: Scope) -> None:
        """The thread may be stuck in user code: it keeps neither the transaction nor a working connection.

        The connection first: a thread that is about to append and commit must find it closed before what it appends
        is dropped, or it would commit the effect without its events."""
        unit.close(discard=True)
        scope.close()
        self.close()

    def _own_thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._thread is None:
            self._thread = concurrent.futures.ThreadPoolExecutor(
                1, f"eventkeel-{self._service}", initializer=INSIDE.set, initargs=(self._service,)
            )
        return self._thread


def error_text(error: BaseException) -> str:
    """What a dead letter says of its error, at most 4 KB, in characters that every database takes: its message on
    the first line, which lists show, then the last frames. A message that could not be read has no frames to show:
    they would all be ours."""
    if isinstance(error, MalformedMessage | UnknownType):
        text = str(error)
    else:
        said = [line for line in traceback.format_exception_only(error) if not line.startswith(" ")]
        headline = said[0].partition("\n")[0][:500]
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-4)
        text = headline + "\n" + "".join(lines)[len(headline) + 1 - ERROR_TEXT :]
    text = text.replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode()[:ERROR_TEXT]
