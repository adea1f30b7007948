"""Units without user code: keep a failed delivery, and what nobody can be told."""

from __future__ import annotations

from typing import TypeVar

from eventkeel.drive import Program
from eventkeel.engine.faults import point
from eventkeel.engine.unit_of_work import FencedOff
from eventkeel.engine.work import Work
from eventkeel.ports.store import Held, Unit

T = TypeVar("T")


def whole(unit: Unit, body: Program[T]) -> Program[T]:
    """``body`` in a transaction of its own: committed as a whole, or rolled back."""
    yield from unit.begin(speculative=False)
    try:
        result = yield from body
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise
    return result


def park_unit(unit: Unit, group: str, work: Work, held: Held, due: float, now: float) -> Program[None]:
    """The outcome of a failed delivery is durable before it is settled: parked, and its key with it."""

    def body() -> Program[None]:
        yield from _fence(unit, group, work)
        yield from unit.park(work.name, held, due=due, opens=True, epoch=work.share.epoch, now=now)
        yield from unit.clear_attempt(work.name, work.event_id)

    yield from whole(unit, body())
    point("gate.parked")


def bury_unit(unit: Unit, group: str, work: Work, held: Held, blocks: bool, now: float) -> Program[None]:
    """A dead letter in place of an effect."""

    def body() -> Program[None]:
        yield from _fence(unit, group, work)
        yield from unit.bury(work.name, held, blocks=blocks, epoch=work.share.epoch, now=now)
        yield from unit.clear_attempt(work.name, work.event_id)

    yield from whole(unit, body())


def mark_unit(unit: Unit, group: str, work: Work, now: float) -> Program[int]:
    """Count a start of a suspect delivery before it runs, in a transaction of its own."""

    def body() -> Program[int]:
        yield from _fence(unit, group, work)
        return (yield from unit.mark_attempt(work.name, work.event_id, now))

    return (yield from whole(unit, body()))


def _fence(unit: Unit, group: str, work: Work) -> Program[None]:
    if lost := (yield from unit.fence(group, {work.share.slice: work.share.epoch})):
        raise FencedOff(lost)
