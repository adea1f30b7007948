"""The edge: run an operation written as a generator over a connection, asynchronously or not.

An operation decides; it yields what it wants done (a ``Statement``, or an ``Invoke`` of user code)
and is sent what came of it. These drivers are all that differs between asynchronous and
synchronous services, and between our connections and a user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from eventkeel.ports.store import AsyncConnection, Connection, Statement

T = TypeVar("T")


class Invoke(NamedTuple):
    """Call user code; awaited by the asynchronous driver."""

    call: Callable[..., Any]
    args: tuple[Any, ...]


Program = Generator[Statement | Invoke, Any, T]


async def drive(program: Generator[Any, Any, T], connection: AsyncConnection) -> T:
    """Run ``program``; whatever a step raises is raised inside it, at its ``yield``."""
    run = connection.run
    try:
        step = program.send(None)
        while True:
            try:
                if step.__class__ is Invoke:
                    reply = await step.call(*step.args)
                else:
                    reply = await run(step)
            except BaseException as error:
                step = program.throw(error)
            else:
                step = program.send(reply)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def drive_sync(program: Generator[Any, Any, T], connection: Connection) -> T:
    """The same, in a thread."""
    run = connection.run
    try:
        step = program.send(None)
        while True:
            try:
                reply = step.call(*step.args) if step.__class__ is Invoke else run(step)
            except BaseException as error:
                step = program.throw(error)
            else:
                step = program.send(reply)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
